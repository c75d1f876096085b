"""A multiple-choice knapsack: one level for every group, least summed loss increase within a budget of cost.

Coupled groups multiply their widths, so costs do not add up and the textbook's dynamic programme does not apply; nor
are measured losses always convex. Several starts are each improved until no exchange helps, and the best is taken:

    start       the least of price + multiplier * cost, group by group in turn with the true cost, at the smallest
                multiplier that meets the budget; from all groups whole, alike, and at their lowest level
    exchange    one group some levels up and another some levels down, or one up alone, within the budget

No approximation of the cost enters the result: every state that is taken is checked against the true one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoprune.allocation._base import Cost

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
_LEAST = 1e-6
"""A loss increase that no measurement can tell from none; it prefers what is cheaper where nothing is lost."""
_BISECTIONS = 24
_SWEEPS = 8
_EXCHANGES = 2000
_DEEPEST = 3
_TRIED = 500
_NOTHING = 1e-12


def loss_by_count(size: int, counts: IntArray, increases: FloatArray) -> FloatArray:
    """Return the loss increase at every kept count, (size + 1,), from those measured at `counts` (L,), falling.

    Between measurements the logarithm is interpolated, from the whole group to the first one the square of the removed
    share; below the last the logarithm goes on as before. Noise that lets the loss fall as more goes is flattened.
    """
    counts, first_of = np.unique(counts, return_index=True)
    counts, increases = counts[::-1], increases[first_of][::-1]
    known = counts < size
    removed_L = np.concatenate([[0.0], size - counts[known]])
    risen_L = np.maximum.accumulate(np.maximum(np.concatenate([[0.0], increases[known]]), _LEAST))
    at = np.arange(size + 1, dtype=np.float64)
    if len(removed_L) == 1:
        return _LEAST * at[::-1]
    logs_L = np.log(risen_L)
    found = np.interp(at, removed_L[1:], logs_L[1:])
    if len(removed_L) > 2:
        slope = (logs_L[-1] - logs_L[-2]) / (removed_L[-1] - removed_L[-2])
        found = np.where(at > removed_L[-1], logs_L[-1] + slope * (at - removed_L[-1]), found)
    first = removed_L[1]
    by_removed = np.where(at < first, risen_L[1] * (at / first) ** 2, np.exp(found))
    return by_removed[::-1]


@dataclass(frozen=True, eq=False)
class Group:
    """Levels (L,) of one group, kept counts from all of it down, and the price of each (L,), rising from 0."""

    levels: IntArray
    prices: FloatArray

    @staticmethod
    def of(size: int, least: int, grid: int, prices: FloatArray | None, most: int = 48) -> Group:
        """prices: by kept count, (full size + 1,), or None for a group that stays whole. At most `most` levels."""
        if prices is None or size <= least:
            return Group(np.array([size]), np.zeros(1))
        stride = max(grid, math.ceil(size / most / grid) * grid)
        below = np.arange((size - 1) // stride * stride, 0, -stride)
        levels = np.concatenate([[size], below[below >= least], [least]])
        levels = np.array(sorted(set(levels.tolist()), reverse=True), dtype=np.int64)
        return Group(levels, prices[levels] - prices[size])


def solve(groups: Sequence[Group], cost: Cost, budget: float) -> IntArray:
    """Return the counts (G,) of least summed price within the budget; the lowest levels where nothing meets it."""
    problem = _Problem(groups, cost, budget)
    lowest = problem.lowest()
    if problem.excess(lowest) > 0:
        return problem.counts(lowest)
    begins = (np.zeros_like(lowest), problem.uniform(), lowest)
    starts = {tuple(problem.lagrangian(begin)) for begin in begins}
    found = [problem.exchanged(np.array(start)) for start in sorted(starts)]
    return problem.counts(min(found, key=problem.price))


def alike(groups: Sequence[Group], cost: Cost, budget: float) -> IntArray:
    """Return the counts (G,) at the same share of every group's levels that meet the budget; the lowest otherwise."""
    problem = _Problem(groups, cost, budget)
    return problem.counts(problem.uniform())


class _Problem:
    """States are level numbers (G,), 0 for the whole group."""

    def __init__(self, groups: Sequence[Group], cost: Cost, budget: float) -> None:
        self._groups, self._cost, self._budget = groups, cost, budget
        self._last = np.array([len(g.levels) - 1 for g in groups], dtype=np.int64)

    def lowest(self) -> IntArray:
        return self._last.copy()

    def counts(self, state: IntArray) -> IntArray:
        return np.array([g.levels[i] for g, i in zip(self._groups, state, strict=True)], dtype=np.int64)

    def excess(self, state: IntArray) -> float:
        return self._cost(self.counts(state)) - self._budget

    def price(self, state: IntArray) -> float:
        return float(sum(g.prices[i] for g, i in zip(self._groups, state, strict=True)))

    def uniform(self) -> IntArray:
        """Return the mildest state that takes the same share of every group."""

        def at(share: float) -> IntArray:
            return np.round(share * self._last).astype(np.int64)

        return self._least(at, 0.0, 1.0)

    def lagrangian(self, start: IntArray) -> IntArray:
        """Return the state at the smallest multiplier that meets the budget, descended to from this start."""
        whole = self._cost(self.counts(np.zeros_like(start)))
        dearest = sum(float(g.prices[-1]) for g in self._groups)
        state = self._least(lambda log: self._descended(start, math.exp(log) / whole), -16.0, math.log(dearest + 1) + 9)
        return state if self.excess(state) <= 0 else self.uniform()

    def _least(self, state_at: Callable[[float], IntArray], low: float, high: float) -> IntArray:
        """Return the state at the smallest argument that meets the budget, by bisection; that at `high` otherwise."""
        found = state_at(high)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            tried = state_at(middle)
            if self.excess(tried) <= 0:
                found, high = tried, middle
            else:
                low = middle
        return found

    def _descended(self, start: IntArray, multiplier: float) -> IntArray:
        """Minimise price + multiplier * cost over one group after the other until nothing changes."""
        state = start.copy()
        for _ in range(_SWEEPS):
            before = state.copy()
            for i, group in enumerate(self._groups):
                if len(group.levels) > 1:
                    state[i] = int(np.argmin(group.prices + multiplier * self._costs(state, i)))
            if (state == before).all():
                break
        return state

    def _costs(self, state: IntArray, i: int) -> FloatArray:
        """Return the cost (L,) at every level of a group: a parabola in its width through three of them."""
        levels, counts = self._groups[i].levels, self.counts(state)
        picked = sorted({0, len(levels) // 2, len(levels) - 1})
        costs = []
        for level in picked:
            counts[i] = levels[level]
            costs.append(self._cost(counts))
        return _parabola(levels[picked].astype(np.float64), np.array(costs), levels.astype(np.float64))

    def exchanged(self, state: IntArray) -> IntArray:
        """Take the exchange that lowers the price most, again and again, until none does."""
        for _ in range(_EXCHANGES):
            better = self._exchange(state)
            if better is None:
                break
            state = better
        return state

    def _exchange(self, state: IntArray) -> IntArray | None:
        """Return a better state within the budget, the best first; None when no exchange of two groups helps."""
        spare = -self.excess(state)
        stay = _Moves.none()
        ups = self._moves(state, [-by for by in range(1, _DEEPEST + 1)])
        downs = stay.and_(self._moves(state, range(1, _DEEPEST + 1)))
        price_UD = ups.price[:, None] + downs.price
        # what the two change together is known only by the true cost; a tenth of either is left for it
        extra_UD = 0.9 * ups.cost[:, None] + 1.1 * downs.cost
        able_UD = (ups.group[:, None] != downs.group) & (price_UD < -_NOTHING) & (extra_UD <= spare)
        rows, columns = np.nonzero(able_UD)
        for at in np.argsort(price_UD[rows, columns], kind="stable")[:_TRIED]:
            up, down = rows[at], columns[at]
            tried = state.copy()
            tried[ups.group[up]] += ups.by[up]
            if down:
                tried[downs.group[down]] += downs.by[down]
            if self.excess(tried) <= 0:
                return tried
        return None

    def _moves(self, state: IntArray, steps: Iterable[int]) -> _Moves:
        """Return all moves of one group by so many levels."""
        found, counts, excess = list[tuple[int, int, float, float]](), self.counts(state), self.excess(state)
        for i, by in itertools.product(range(len(state)), steps):
            level = int(state[i]) + by
            if 0 <= level <= self._last[i]:
                group, before = self._groups[i], counts[i]
                counts[i] = group.levels[level]
                extra = self._cost(counts) - self._budget - excess
                counts[i] = before
                found.append((i, by, float(group.prices[level] - group.prices[state[i]]), extra))
        return _Moves.of(found)


@dataclass(frozen=True, eq=False)
class _Moves:
    """Group, levels, change of price and change of cost, (M,) each."""

    group: IntArray
    by: IntArray
    price: FloatArray
    cost: FloatArray

    @staticmethod
    def of(rows: Sequence[tuple[int, int, float, float]]) -> _Moves:
        table = np.array(rows, dtype=np.float64).reshape(-1, 4)
        return _Moves(table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), table[:, 2], table[:, 3])

    @staticmethod
    def none() -> _Moves:
        """One move that moves nothing."""
        return _Moves.of([(-1, 0, 0.0, 0.0)])

    def and_(self, other: _Moves) -> _Moves:
        return _Moves(
            np.concatenate([self.group, other.group]),
            np.concatenate([self.by, other.by]),
            np.concatenate([self.price, other.price]),
            np.concatenate([self.cost, other.cost]),
        )


def _parabola(x: FloatArray, y: FloatArray, at: FloatArray) -> FloatArray:
    """Return the polynomial through up to three points, by Lagrange's formula."""
    found = np.zeros_like(at)
    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i]
        found += y[i] * np.prod([(at - x[j]) / (x[i] - x[j]) for j in others], axis=0)
    return found
