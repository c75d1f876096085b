"""How a user chooses one model of a study."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autoprune.errors import BadInput, UnknownName
from autoprune.report.quality import (
    NOTHING_FINISHED,
    ROUNDING,
    accuracy,
    axis_of,
    best_at,
    finished,
    flops_fraction,
    knee,
    non_dominated,
    quality,
)
from autoprune.study.records import TrialRecord

_SELECTORS = ("target_flops", "min_accuracy", "max_drop", "trial", "knee")


@dataclass(frozen=True, kw_only=True)
class Selector:
    """How a user chooses: exactly one of these."""

    target_flops: float | None = None
    min_accuracy: float | None = None
    max_drop: float | None = None
    trial: int | None = None
    knee: bool = False

    def check(self) -> None:
        """Raises BadInput unless exactly one is given, inside its range."""
        given = [n for n in _SELECTORS if getattr(self, n) is not None and getattr(self, n) is not False]
        if len(given) != 1:
            flags = ", ".join(_flag(n) for n in _SELECTORS)
            got = " and ".join(_flag(n) for n in given) or "none"
            raise BadInput(f"choose a model by exactly one of {flags}; got {got}")
        for name in ("target_flops", "min_accuracy", "max_drop"):
            if getattr(self, name) is not None:
                check_fraction(_flag(name), getattr(self, name), zero_allowed=name != "target_flops")


def choose(
    trials: Sequence[TrialRecord], objectives: Sequence[str], base_accuracy: float, selector: Selector
) -> TrialRecord:
    """Return the trial that a selector asks for.

    target_flops   the most accurate with at most this share of the FLOPs
    min_accuracy   the cheapest with at least this accuracy
    max_drop       the cheapest that loses at most this much of the base model's accuracy
    trial          that trial, if it finished
    knee           the one of the front that stands farthest above the chord between its ends
    What is cheaper goes by the metric of `axis_of`: FLOPs, unless they are no objective.
    Raises BadInput, naming the nearest, when nothing qualifies.
    """
    selector.check()
    if selector.trial is not None:
        return _by_number(trials, selector.trial)
    done = finished(trials)
    if not done:
        raise BadInput(NOTHING_FINISHED)
    axis = axis_of(objectives)
    if selector.target_flops is not None:
        return _within_flops(done, selector.target_flops)
    if selector.min_accuracy is not None:
        return _accurate(done, selector.min_accuracy, f"an accuracy of at least {selector.min_accuracy:g}", axis)
    if selector.max_drop is not None:
        what = f"an accuracy within {selector.max_drop:g} of the base model's {base_accuracy:.4f}"
        return _accurate(done, base_accuracy - selector.max_drop, what, axis)
    return knee(non_dominated(done, objectives), axis)


def check_fraction(what: str, value: float, *, zero_allowed: bool = False) -> None:
    """Raises BadInput for a value outside (0, 1], or [0, 1] where zero is allowed."""
    if not (0 < value <= 1 or (zero_allowed and value == 0)):
        hint = f". Did you mean {value / 100:g}?" if 1 < value <= 100 else ""
        allowed = "from 0 to 1" if zero_allowed else "greater than 0 and at most 1"
        raise BadInput(f"{what} is a fraction {allowed}, got {value:g}{hint}")


def _within_flops(done: Sequence[TrialRecord], target: float) -> TrialRecord:
    found = best_at(done, target)
    if found is None:
        nearest = min(done, key=lambda t: (flops_fraction(t), -accuracy(t)))
        raise BadInput(f"no finished trial has at most {target:g} of the FLOPs; the nearest is {_told(nearest)}")
    return found


def _accurate(done: Sequence[TrialRecord], wanted: float, what: str, axis: str) -> TrialRecord:
    fitting = [t for t in done if accuracy(t) >= wanted - ROUNDING]
    if not fitting:
        raise BadInput(f"no finished trial has {what}; the nearest is {_told(max(done, key=quality))}")
    return min(fitting, key=lambda t: (t.metrics.get(axis, math.inf), -accuracy(t), t.number))


def _by_number(trials: Sequence[TrialRecord], number: int) -> TrialRecord:
    done = finished(trials)
    known = ", ".join(str(t.number) for t in done) or "none"
    for trial in trials:
        if trial.number == number and trial in done:
            return trial
        if trial.number == number:
            why = f": {trial.error}" if trial.error else ""
            raise BadInput(f"trial {number} is {trial.state}{why}. Finished trials: {known}")
    raise UnknownName(f"there is no trial {number}. Finished trials: {known}")


def _told(trial: TrialRecord) -> str:
    what = f"trial {trial.number}" + (f" ({trial.baseline})" if trial.baseline else "")
    return f"{what} with accuracy {accuracy(trial):.4f} at {flops_fraction(trial):.4f} of the FLOPs"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
