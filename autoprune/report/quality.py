"""How good trials are, and which of them no other one beats: pure functions over trial records.

Accuracies are in 0..1 and, unless a name says test, of the validation split; costs are fractions of the base model's,
except latency_ms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from autoprune.errors import BadInput
from autoprune.search.noise import standard_error
from autoprune.search.objectives import METRIC_OF, OF_DEPLOYED
from autoprune.study.records import TrialRecord

# Costs are counted exactly; this only forgives the rounding of a target that a user typed.
ROUNDING = 1e-9
# Rounding that makes equally distant knees equal.
_DIGITS = 12
_BY_CHANCE = 0.005
NOTHING_FINISHED = "no trial has finished yet, so there is nothing to choose from; 'autoprune launch' resumes"


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
    """Tell whether any of the trials has more zeros among its weights than the few that happen without a method."""
    return any(t.metrics.get("sparsity", 0.0) > _BY_CHANCE for t in trials)


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
    fitting = [t for t in finished(trials) if flops_fraction(t) <= target + ROUNDING]
    return max(fitting, key=quality, default=None)


def knee(front: Sequence[TrialRecord], axis: str = METRIC_OF["flops"]) -> TrialRecord:
    """Return the trial farthest above the chord between the two ends of the front, on axes scaled to 0..1.

    axis: the metric that holds the cost, see `axis_of`. Without a trial above the chord the cheaper end.
    Raises BadInput for an empty front.
    """

    def cost(trial: TrialRecord) -> float:
        return trial.metrics.get(axis, math.nan)

    by_cost = sorted(finished(front), key=cost)
    if not by_cost:
        raise BadInput(NOTHING_FINISHED)
    low, high = by_cost[0], by_cost[-1]
    width = cost(high) - cost(low)
    height = accuracy(high) - accuracy(low)
    if width <= 0 or height <= 0:
        return max(by_cost, key=quality)

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


def quality(trial: TrialRecord) -> tuple[float, float, int]:
    return accuracy(trial), -flops_fraction(trial), -trial.number


def _losses(trial: TrialRecord, objectives: Sequence[str]) -> tuple[float, ...]:
    values = [(name, trial.metrics.get(METRIC_OF[name], math.nan)) for name in objectives]
    return tuple(math.inf if math.isnan(v) else -v if name == "accuracy" else v for name, v in values)
