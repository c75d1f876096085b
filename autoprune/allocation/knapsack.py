"""Least summed loss for the target, over measured sensitivities. As in Aflalo et al. 2020, arXiv 2002.08258.

Every group alone is cut to `levels` keep fractions by the recipe's criterion, put right as the recipe does it (by
closed-form compensation, say), and the loss is measured on training samples without any training. Then

    minimise  sum over groups g of f_g(k_g)    subject to  cost(k) <= target

k_g the units that stay, f_g the measured loss increase, interpolated between the levels on a logarithmic scale. Unit:
loss. The cost is the true one, in which coupled groups multiply: `autoprune/allocation/_knapsack.py` solves it.

Loss increases of groups that are cut together do not just add up. Therefore the solution is refined in further
`rounds`: every group is measured a little wider and a little narrower while the others stand at the solution, and the
knapsack is solved again within these bounds. Where the same share of every group measures better than the first
solution, that is refined. After a round whose solution measures no better the bounds are closer.

The path goes through the solution: size * (k_g / size) ** t. At later cuts of a schedule what is measured is still the
model before the first one.
Departs from the paper: levels are those of whole groups with measured loss, not single channels with a Taylor score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from autoprune.allocation._base import Allocation, AllocationContext, Measure, Path
from autoprune.allocation._knapsack import Group, alike, loss_by_count, solve
from autoprune.allocation._ranking import lenient_path
from autoprune.allocation._sensitivities import Sensitivities, keep_fractions, measure_groups
from autoprune.evidence import Evidence
from autoprune.fields import integer
from autoprune.graph import Group as GraphGroup

IntArray = NDArray[np.int64]
_SPREAD = 1.4
_TINY = 1e-9


@dataclass(frozen=True, kw_only=True)
class Knapsack(Allocation):
    """Choose each group's amount by what its removal was measured to cost."""

    needs: ClassVar[frozenset[str]] = frozenset({Evidence.GROUP_SENSITIVITIES})

    levels: int = integer(5, valid=(2, 99), search=(4, 9), help="keep fractions at which each group is measured")
    samples: int = integer(
        512, valid=(2, 10_000_000), search=(256, 2048), log=True, help="training samples of each measurement"
    )

    rounds: int = integer(
        3, valid=(1, 50), search=(1, 5), help="solutions: the first from groups cut alone, the others around the last"
    )

    def measured_samples(self, groups: int) -> int:
        more = self.rounds - 1
        return self.samples * (1 + self.levels * groups + 2 * bool(more) + more * (2 * groups + 1))

    def path(self, context: AllocationContext) -> Path:
        measure = context.measure_for(self.name)
        found = measure_groups(context, measure, keep_fractions(self.levels), self.samples)
        groups = alone(context, found)
        starts = [solve(groups, context.cost, context.budget), alike(groups, context.cost, context.budget)]
        counts = self._refined(context, starts, measure) if self.rounds > 1 else starts[0]
        kept = zip(context.structure.groups, counts, strict=True)
        return lenient_path(context.structure, {g.name: n / g.size for g, n in kept if g.name in context.scores})

    def _refined(self, context: AllocationContext, starts: Sequence[IntArray], measure: Measure) -> IntArray:
        """Return counts (G,) that measure no worse than the best start."""
        losses = [measure(_named(context, counts), self.samples).loss for counts in starts]
        loss, counts = min(losses), starts[losses.index(min(losses))]
        spread = _SPREAD
        for _ in range(self.rounds - 1):
            around = [self._around(context, counts, i, loss, spread, measure) for i in range(len(counts))]
            tried = solve(around, context.cost, context.budget)
            found = measure(_named(context, tried), self.samples).loss
            if found < loss:
                counts, loss = tried, found
            else:
                spread = math.sqrt(spread)
        return counts

    def _around(
        self,
        context: AllocationContext,
        counts: IntArray,
        index: int,
        loss: float,
        spread: float,
        measure: Measure,
    ) -> Group:
        """Return a group's levels from `spread` times narrower to as much wider, the others at these counts (G,)."""
        group, grid = context.structure.groups[index], context.structure.round_to
        if group.name not in context.scores:
            return Group.of(group.size, group.size, grid, None)
        here = int(counts[index])
        low = max(_least(context, group), min(here - grid, int(here / spread / grid) * grid))
        high = min(group.size, max(here + grid, math.ceil(here * spread / grid) * grid))
        losses = {here: loss}
        for count in {low, high} - {here}:
            moved = counts.copy()
            moved[index] = count
            losses[count] = measure(_named(context, moved), self.samples).loss
        known = sorted(losses)
        # Wider is never worse; what noise says otherwise is flattened.
        falling = np.minimum.accumulate([losses[n] for n in known])
        prices = np.exp(np.interp(np.arange(high + 1), known, np.log(np.maximum(falling, _TINY))))
        return Group.of(high, low, grid, prices)


def alone(context: AllocationContext, found: Sensitivities) -> list[Group]:
    """Return the levels and prices of every group as it was measured when it alone was cut."""
    return [_alone(context, found, group) for group in context.structure.groups]


def _alone(context: AllocationContext, found: Sensitivities, group: GraphGroup) -> Group:
    grid, curve = context.structure.round_to, found.curves.get(group.name)
    if curve is None:
        return Group.of(group.size, group.size, grid, None)
    prices = loss_by_count(curve.size, curve.counts, curve.losses - found.loss)
    return Group.of(group.size, _least(context, group), grid, prices)


def _least(context: AllocationContext, group: GraphGroup) -> int:
    grid = context.structure.round_to
    return min(group.size, max(1, math.ceil(context.min_keep_fraction * context.full_sizes[group.name] / grid)) * grid)


def _named(context: AllocationContext, counts: IntArray) -> dict[str, int]:
    return {g.name: int(n) for g, n in zip(context.structure.groups, counts, strict=True) if g.name in context.scores}
