"""The front of a study, as users hold it, and as JSON and CSV say it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from autoprune.report import extras, polished, scratch, speed
from autoprune.report.quality import (
    accuracy,
    accuracy_on_test,
    best_at,
    finished,
    flops_fraction,
    name_of,
    non_dominated,
    quality,
)
from autoprune.report.selection import Selector, choose
from autoprune.study.records import StudyRecord, TrialRecord

if TYPE_CHECKING:
    from autoprune.deployment.speed import Measured
    from autoprune.report.pick import Pick


class Front:
    """A study's front: iterable over its finished, non-dominated trials, by falling FLOPs."""

    def __init__(self, record: StudyRecord) -> None:
        self.record = record
        self.objectives: tuple[str, ...] = tuple(record.config.objectives)

    @classmethod
    def of(cls, record: StudyRecord) -> Front:
        """Return the front of a study's record."""
        return cls(record)

    @cached_property
    def trials(self) -> tuple[TrialRecord, ...]:
        """The front itself."""
        return non_dominated(self.record.trials, self.objectives)

    @cached_property
    def baselines(self) -> tuple[TrialRecord, ...]:
        """The finished baselines, by falling FLOPs."""
        found = [t for t in finished(self.record.trials) if t.baseline]
        return tuple(sorted(found, key=lambda t: (-flops_fraction(t), name_of(t))))

    @cached_property
    def speeds(self) -> tuple[speed.Row, ...]:
        """What was measured of the front and the baselines, on any back end."""
        shown = {t.number for t in (*self.trials, *self.baselines)}
        return tuple(row for row in speed.read_rows(self.record.folder) if row.trial in shown)

    @cached_property
    def speed_of(self) -> Mapping[int, Measured]:
        """Trial to its measurement in the float setting measured last: times of one column are of one setting."""
        return {row.trial: row.measured for row in speed.newest_setting(self.speeds) if row.trial is not None}

    @property
    def base(self) -> Mapping[str, float]:
        """Metrics of the base model: flops, params, accuracy, test_accuracy where there is one ..."""
        return self.record.base

    def __iter__(self) -> Iterator[TrialRecord]:
        return iter(self.trials)

    def __len__(self) -> int:
        return len(self.trials)

    def best_at(self, target_flops: float) -> TrialRecord | None:
        """Return the most accurate finished trial within a share of the FLOPs, None when there is none."""
        return best_at(self.record.trials, target_flops)

    def best_of(self, target: str) -> TrialRecord | None:
        """Return the most accurate finished trial that was made for a target, given by its short name."""
        own = [t for t in finished(self.record.trials) if t.target_label == target]
        return max(own, key=quality, default=None)

    def choose(self, selector: Selector) -> TrialRecord:
        """Return the trial that a selector asks for. Raises BadInput, naming the nearest."""
        base_accuracy = self.base.get("accuracy", math.nan)
        return choose(self.record.trials, self.objectives, base_accuracy, selector)

    def pick(
        self,
        *,
        target_flops: float | None = None,
        min_accuracy: float | None = None,
        max_drop: float | None = None,
        trial: int | None = None,
        knee: bool = False,
        polish: bool = True,
    ) -> Pick:
        """Choose one model by exactly one of these; see `choose`. Raises BadInput, naming the nearest.

        polish: take the chosen trial's polished model, where it has one.
        """
        from autoprune.report.pick import Pick

        selector = Selector(
            target_flops=target_flops, min_accuracy=min_accuracy, max_drop=max_drop, trial=trial, knee=knee
        )
        chosen = self.choose(selector)
        found = polished.as_polished(chosen) if polish else None
        if found is None:
            return Pick(trial=chosen, source=self.record.folder)
        return Pick(trial=found[0], source=self.record.folder, repeat=found[1].repeat)

    def plain(self) -> dict[str, Any]:
        """Return the front, the baselines and the base model as plain data for JSON.

        as_good_as_next: the next cheaper trial of the front, where the two do not differ by more than noise.
        """
        from autoprune.report.significance import as_good_as_next

        same = as_good_as_next(self.trials)
        return {
            "study": self.record.config.name,
            "run": str(self.record.folder),
            "objectives": list(self.objectives),
            "base": dict(self.base),
            "front": [plain_trial(t) | {"as_good_as_next": same.get(t.number)} for t in self.trials],
            "baselines": [plain_trial(t) for t in self.baselines],
            "measured": [row.plain() for row in self.speeds],
            "scratch": list(scratch.rows(self.record.folder, (*self.trials, *self.baselines))),
        }

    def csv(self) -> str:
        """Return the front and the baselines as CSV text with a header line."""
        shown = {t.number: t for t in (*self.trials, *self.baselines)}
        on_front = {t.number for t in self.trials}
        text = io.StringIO()
        writer = csv.DictWriter(text, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for number, trial in shown.items():
            writer.writerow(plain_trial(trial) | _speed(self.speed_of.get(number)) | {"on_front": number in on_front})
        return text.getvalue()


_COSTS = (
    "flops_fraction", "flops", "sparse_flops_fraction", "sparse_flops", "sparsity", "params_fraction", "params",
    "latency_ms",
)  # fmt: skip
_WHOLE = ("flops", "sparse_flops", "params")
CSV_COLUMNS = (
    "trial", "baseline", "on_front", "target", "accuracy", "test_accuracy", *_COSTS, "seconds", "trained_samples",
    "speed_up", "speed_up_low", "speed_up_high", "speed_setting", *extras.METRICS,
)  # fmt: skip


def _speed(found: Measured | None) -> dict[str, Any]:
    if found is None:
        return {}
    ratio = found.speed_up
    named = {"speed_up": ratio.value, "speed_up_low": ratio.low, "speed_up_high": ratio.high}
    return named | {"speed_setting": speed.heading(found)}


def plain_trial(trial: TrialRecord) -> dict[str, Any]:
    """Return a trial as plain data; values that are not there are None."""
    return {
        "trial": trial.number,
        "baseline": trial.baseline,
        "target": trial.target_label,
        "state": trial.state,
        "rung": trial.rungs[-1].rung if trial.rungs else None,
        "accuracy": _or_none(accuracy(trial)),
        "test_accuracy": _or_none(accuracy_on_test(trial)),
        "accuracy_by_rung": [_or_none(r.metrics.get("accuracy", math.nan)) for r in trial.rungs],
        **{cost: _cost(trial, cost) for cost in _COSTS},
        **{name: _or_none(trial.metrics[name]) for name in extras.METRICS if name in trial.metrics},
        "seconds": trial.cost.get("seconds"),
        "trained_samples": trial.cost.get("trained_samples"),
        "polished": polished.plain(trial),
        "error": trial.error,
        "recipe": None if trial.recipe is None else dict(trial.recipe),
    }


def _cost(trial: TrialRecord, name: str) -> float | None:
    value = _or_none(trial.metrics.get(name, math.nan))
    return value if value is None or name not in _WHOLE else int(value)


def _or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
