"""The front of a study: which finished models no other one beats, and how to choose from them.

Pure functions over trial records, and `Front`, which users hold. Accuracies are in 0..1 and, unless a name
says test, of the validation split; costs are fractions of the base model's, except latency_ms.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from autoprune.errors import BadInput, UnknownName
from autoprune.report import extras, polished, scratch, speed
from autoprune.search.noise import standard_error
from autoprune.search.objectives import METRIC_OF, OF_DEPLOYED
from autoprune.study.records import StudyRecord, TrialRecord

if TYPE_CHECKING:
    from autoprune.deployment.speed import Measured
    from autoprune.report.pick import Pick

# Costs are counted exactly; this only forgives the rounding of a target that a user typed.
_ROUNDING = 1e-9
# Rounding that makes equally distant knees equal.
_DIGITS = 12


def accuracy(trial: TrialRecord) -> float:
    """Return the validation accuracy at the trial's last rung, NaN before the first."""
    return trial.metrics.get("accuracy", math.nan)


def float_accuracy(trial: TrialRecord, *, on_test: bool = False) -> float:
    """Return the accuracy of the trial's float32 model, also where `accuracy` is that of its int8 file."""
    found = (trial.test or {}) if on_test else trial.metrics
    return found.get("float_accuracy", found.get("accuracy", math.nan))


def flops_fraction(trial: TrialRecord) -> float:
    """Return the trial's FLOPs relative to the base model, NaN before the first rung."""
    return trial.metrics.get("flops_fraction", math.nan)


def axis_of(objectives: Sequence[str]) -> str:
    """Return the metric on the cost axis, a fraction of the base model's: FLOPs of dense kernels by default.

    Another kind of FLOPs, then size, memory or energy of what is deployed, where the kinds before it are no objective.
    """
    kinds = ("flops", "sparse_flops", "dynamic_flops", *OF_DEPLOYED)
    chosen = next((o for o in kinds if o in objectives), "flops")
    return METRIC_OF[chosen] + ("_fraction" if chosen in OF_DEPLOYED else "")


def has_sparsity(trials: Sequence[TrialRecord]) -> bool:
    """Tell whether any of the trials has single weights that are zero."""
    return any(t.metrics.get("sparsity", 0.0) > 0 for t in trials)


def accuracy_on_test(trial: TrialRecord) -> float:
    """Return the accuracy on the test split, NaN where it was not measured."""
    return (trial.test or {}).get("accuracy", math.nan)


def noise(trials: Sequence[TrialRecord]) -> str:
    """Return a sentence with the largest standard error of the trials' accuracies; empty without counts.

    sqrt(p (1 - p) / n), the binomial error of accuracy p on n samples: differences of that size mean nothing.
    """
    parts = []
    for split, measured in (("validation", [t.metrics for t in trials]), ("test", [t.test or {} for t in trials])):
        counted = [m for m in measured if m.get("count", 0) > 0 and 0 <= m.get("accuracy", math.nan) <= 1]
        if counted:
            errors = [standard_error(m["accuracy"], m["count"]) for m in counted]
            parts.append(f"{100 * max(errors):.1f} points ({split}, {counted[0]['count']:.0f} samples)")
    return f"One standard error is up to {' and '.join(parts)}." if parts else ""


def name_of(trial: TrialRecord) -> str:
    """Return what tables call a trial."""
    return trial.baseline or f"trial {trial.number}"


def finished(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the trials that reached the top rung, by number."""
    return sorted((t for t in trials if t.state == "done" and t.rungs), key=lambda t: t.number)


def non_dominated(trials: Sequence[TrialRecord], objectives: Sequence[str]) -> tuple[TrialRecord, ...]:
    """Return the finished trials that no other finished one beats in all objectives, by falling FLOPs.

    Of trials that are equal in all objectives the first is kept.
    """
    done = finished(trials)
    points = [_losses(t, objectives) for t in done]
    kept: list[int] = []
    # whatever beats a point comes before it in this order, as does the first of equal ones
    for i in sorted(range(len(done)), key=lambda i: (points[i], i)):
        if not any(all(x <= y for x, y in zip(points[k], points[i], strict=True)) for k in kept):
            kept.append(i)
    return tuple(sorted((done[i] for i in kept), key=lambda t: (-flops_fraction(t), t.number)))


def best_at(trials: Sequence[TrialRecord], target: float) -> TrialRecord | None:
    """Return the most accurate finished trial within a share of the FLOPs; of equal ones the cheapest."""
    fitting = [t for t in finished(trials) if flops_fraction(t) <= target + _ROUNDING]
    return max(fitting, key=_quality, default=None)


def knee(front: Sequence[TrialRecord], axis: str = METRIC_OF["flops"]) -> TrialRecord:
    """Return the trial farthest above the chord between the two ends of the front, on axes scaled to 0..1.

    axis: the metric that holds the cost, see `axis_of`. Without a trial above the chord the cheaper end.
    Raises BadInput for an empty front.
    """

    def cost(trial: TrialRecord) -> float:
        return trial.metrics.get(axis, math.nan)

    by_cost = sorted(finished(front), key=cost)
    if not by_cost:
        raise BadInput(_NOTHING_FINISHED)
    low, high = by_cost[0], by_cost[-1]
    width = cost(high) - cost(low)
    height = accuracy(high) - accuracy(low)
    if width <= 0 or height <= 0:
        return max(by_cost, key=_quality)

    def above_chord(trial: TrialRecord) -> float:
        # On scaled axes the chord is the diagonal: the distance above it grows with y - x.
        x = (cost(trial) - cost(low)) / width
        return round((accuracy(trial) - accuracy(low)) / height - x, _DIGITS)

    return max(by_cost, key=lambda t: (above_chord(t), -cost(t)))


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Return the area that points (accuracy up, cost down) dominate, down to a reference (accuracy, cost).

    >>> hypervolume([(0.9, 0.5), (0.8, 0.25)], (0.0, 1.0))
    0.65
    """
    worst_accuracy, worst_cost = reference
    area, best = 0.0, worst_accuracy
    # By rising cost, each point that is more accurate than all cheaper ones adds one slab.
    for height, cost in sorted(points, key=lambda p: (p[1], -p[0])):
        if height > best and cost < worst_cost:
            area += (height - best) * (worst_cost - cost)
            best = height
    return round(area, _DIGITS)


def hypervolume_over(trials: Sequence[TrialRecord], axis: str = METRIC_OF["flops"]) -> list[tuple[int, float]]:
    """Return (trial number, hypervolume so far) for every finished trial, against accuracy 0 at all FLOPs.

    axis: the metric that holds the cost, see `axis_of`.
    """
    found: list[tuple[int, float]] = []
    front: list[tuple[float, float]] = []
    area = 0.0
    for trial in finished(trials):
        height, cost = accuracy(trial), trial.metrics.get(axis, math.nan)
        if not any(h >= height and c <= cost for h, c in front):
            front = [(h, c) for h, c in front if h > height or c < cost] + [(height, cost)]
            area = hypervolume(front, (0.0, 1.0))
        found.append((trial.number, area))
    return found


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


_SELECTORS = ("target_flops", "min_accuracy", "max_drop", "trial", "knee")


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
        raise BadInput(_NOTHING_FINISHED)
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
        return max(own, key=_quality, default=None)

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
    "trial", "baseline", "on_front", "target", "accuracy", "test_accuracy", *_COSTS, "seconds",
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
        "polished": polished.plain(trial),
        "error": trial.error,
        "recipe": None if trial.recipe is None else dict(trial.recipe),
    }


_NOTHING_FINISHED = "no trial has finished yet, so there is nothing to choose from; 'autoprune launch' resumes"


def _cost(trial: TrialRecord, name: str) -> float | None:
    value = _or_none(trial.metrics.get(name, math.nan))
    return value if value is None or name not in _WHOLE else int(value)


def _quality(trial: TrialRecord) -> tuple[float, float, int]:
    return accuracy(trial), -flops_fraction(trial), -trial.number


def _losses(trial: TrialRecord, objectives: Sequence[str]) -> tuple[float, ...]:
    values = [(name, trial.metrics.get(METRIC_OF[name], math.nan)) for name in objectives]
    return tuple(math.inf if math.isnan(v) else -v if name == "accuracy" else v for name, v in values)


def _within_flops(done: Sequence[TrialRecord], target: float) -> TrialRecord:
    found = best_at(done, target)
    if found is None:
        nearest = min(done, key=lambda t: (flops_fraction(t), -accuracy(t)))
        raise BadInput(f"no finished trial has at most {target:g} of the FLOPs; the nearest is {_told(nearest)}")
    return found


def _accurate(done: Sequence[TrialRecord], wanted: float, what: str, axis: str) -> TrialRecord:
    fitting = [t for t in done if accuracy(t) >= wanted - _ROUNDING]
    if not fitting:
        raise BadInput(f"no finished trial has {what}; the nearest is {_told(max(done, key=_quality))}")
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


def _or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
