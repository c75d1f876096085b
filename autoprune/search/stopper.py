"""The stopper: which trials go up to the next rung. Pure functions over plain data.

Asynchronous successive halving in its stopping form (Li et al., MLSys 2020, arXiv 1810.05934, as Ray Tune's ASHA does
it): a trial is judged when it finishes a rung, against those that were there before, and goes up at once or stops at
once; nothing waits. It departs from the paper in three ways:

- Trials are compared only with trials of a similar target. There the objectives that the target pins are equal by
  construction, so that they say nothing; comparing them would make every rounding difference a trade-off.
- Of the other objectives, trials are ranked by non-dominated front, then by accuracy.
- Of n results the best ceil(n / reduction) go up instead of none before there are `reduction` results: studies are
  small, and a first trial that is stopped unseen is lost. Baselines go up always and count as results, so that a trial
  which beats neither of them at rung 0 does stop early.
- A lead within the standard error of the samples that both were judged on is none. Among equals those that came first
  go up: a place that one of them has taken is gone for the others, whatever their last digits say. Where nearly all are
  alike, as at chance before any training, one in `reduction` goes up, neither all of them nor every new best by luck.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoprune.search.noise import is_lead

SIMILAR_TARGET = 0.02
"""Targets that differ by at most this much of the base model's cost are compared with each other."""

_SAME_COST = math.log(1.05)


@dataclass(frozen=True, kw_only=True)
class Point:
    """A trial's result at one rung. `costs` holds the objectives that are minimised, `pinned` those of the target.

    count: the samples that the accuracy was measured on; 0 where that is not known. promoted: whether it went up.
    """

    trial: int
    accuracy: float
    costs: Mapping[str, float]
    pinned: Mapping[str, float]
    baseline: bool = False
    count: float = 0.0
    promoted: bool = False


def goes_up(mine: Point, others: Sequence[Point], reduction: float, noise: float = 1.0) -> bool:
    """Tell whether a trial is promoted, given the other results at the same rung.

    noise: the standard errors within which a lead in accuracy is none.
    """
    if mine.baseline:
        return True
    rivals = [other for other in others if similar(mine.pinned, other.pinned)]
    places = math.ceil((len(rivals) + 1) / reduction)
    taken = sum(rival.promoted and not rival.baseline and _equal(mine, rival, noise) for rival in rivals)
    return count_better(mine, rivals, noise) + taken < places


def similar(a: Mapping[str, float], b: Mapping[str, float]) -> bool:
    """Tell whether two targets pin the same costs at about the same fractions."""
    return a.keys() == b.keys() and all(abs(a[k] - b[k]) <= SIMILAR_TARGET + 1e-9 for k in a)


def count_better(mine: Point, rivals: Sequence[Point], noise: float = 1.0) -> int:
    """Return how many rivals rank before: on an earlier front, or on the same with more accuracy; ties left out."""
    points = [mine, *rivals]
    fronts = front_numbers([_values(p) for p in points])
    own = (fronts[0], -mine.accuracy)
    return sum(
        (front, -rival.accuracy) < own and not _ties(mine, rival, noise)
        for front, rival in zip(fronts[1:], rivals, strict=True)
    )


def _ties(mine: Point, rival: Point, noise: float) -> bool:
    """Tell whether a rival's only advantage is a lead in accuracy that may be luck."""
    cheaper = any(a < b for a, b in zip(_values(rival)[1:], _values(mine)[1:], strict=True))
    count = min(mine.count, rival.count)
    return not cheaper and not is_lead(rival.accuracy, mine.accuracy, count, noise)


def _equal(a: Point, b: Point, noise: float) -> bool:
    """Tell whether neither has an advantage over the other that may not be luck."""
    count = min(a.count, b.count)
    better, worse = max(a.accuracy, b.accuracy), min(a.accuracy, b.accuracy)
    return _values(a)[1:] == _values(b)[1:] and not is_lead(better, worse, count, noise)


def front_numbers(rows: Sequence[tuple[float, ...]]) -> list[int]:
    """Return for every row (less is better) how many fronts come before its own; 0 is non-dominated.

    >>> front_numbers([(1, 2), (2, 1), (2, 2), (3, 3)])
    [0, 0, 1, 2]
    """
    if not rows:
        return []
    values = np.asarray(rows, dtype=np.float64)
    if values.shape[1] == 1:
        return [int(number) for number in np.unique(values, return_inverse=True)[1].ravel()]
    numbers = np.full(len(rows), -1)
    # beaten[i, j]: row i dominates row j
    beaten = _dominating(values)
    number = 0
    while (left := numbers < 0).any():
        front = left & ~beaten[left].any(axis=0)
        numbers[front] = number
        number += 1
    return [int(number) for number in numbers]


def _dominating(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    no_worse = np.ones((len(values), len(values)), dtype=bool)
    better = np.zeros_like(no_worse)
    for column in values.T:
        no_worse &= column[:, None] <= column[None, :]
        better |= column[:, None] < column[None, :]
    return no_worse & better


def dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Tell whether a is nowhere worse than b and somewhere better (less)."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


def _values(point: Point) -> tuple[float, ...]:
    # Costs within five per cent of each other fall into one step of a logarithmic scale; being steps and not a
    # tolerance keeps "dominates" transitive.
    free = sorted(set(point.costs) - set(point.pinned))
    return (-point.accuracy, *(round(math.log(max(point.costs[k], 1e-9)) / _SAME_COST) for k in free))
