"""Results by rung, and who goes up: `autoprune.search.stopper` applied to a study's trials."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from autoprune.recipe import Target
from autoprune.search import objectives, stopper
from autoprune.study.config import StudyConfig


class Rungs:
    """What every trial measured at every rung, in the order in which results came."""

    def __init__(self, config: StudyConfig) -> None:
        self._objectives, self._settings = config.objectives, config.rungs
        self._points: dict[int, list[stopper.Point]] = {}

    def point(self, trial: int, target: Target, metrics: Mapping[str, float], baseline: bool) -> stopper.Point:
        """Return a result as the stopper sees it. Raises LossNotFinite for a metric that is not finite."""
        accuracy, *_ = objectives.values(["accuracy"], metrics)
        costs = [name for name in self._objectives if name != "accuracy"]
        return stopper.Point(
            trial=trial,
            accuracy=accuracy,
            costs=dict(zip(costs, objectives.values(costs, metrics), strict=True)),
            pinned={name.removesuffix("_fraction"): part for name, part in target if part is not None},
            baseline=baseline,
            count=metrics.get("count", 0.0),
        )

    def promote(self, rung: int, point: stopper.Point) -> bool:
        """Tell whether a trial goes up from a rung, and take up its result."""
        others = self._points.get(rung, [])
        promoted = rung < self._settings.top and stopper.goes_up(
            point, others, self._settings.reduction, self._settings.noise
        )
        self.add(rung, point, promoted)
        return promoted

    def add(self, rung: int, point: stopper.Point, promoted: bool) -> None:
        """Take up a result that was decided on before."""
        self._points.setdefault(rung, []).append(replace(point, promoted=promoted))
