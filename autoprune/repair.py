"""Bring a recipe's amounts onto its target exactly, before anything is trained.

Kept units and ranks both shrink along one scalar, the strength. Bisection over the closed-form cost finds the least
strength that meets the target; what rounding left over is then given back unit by unit, in the order in which the next
units would have come, until the next one would exceed the target. Where affected units may be replaced instead of
removed, both bands follow the same scalar.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoprune.allocation import Path
from autoprune.errors import UnreachableTarget
from autoprune.graph import Structure
from autoprune.lowrank import Energies, LowRank, RankPath
from autoprune.recipe import Target
from autoprune.replacement import Bands, Replacement

_BISECTIONS = 60
_MOST_STRENGTH = 2.0**14
Counts = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """What a recipe keeps: units per group, ranks of the factorised layers, and what that costs of the base model.

    implanted: how many of a group's units that stay are in a cheaper form, for groups that have some. skipped: blocks
    that are gone, with the groups inside them. latency_fraction: as predicted, None without a target of latency.
    """

    counts: Mapping[str, int]
    ranks: Mapping[str, int]
    flops_fraction: float
    params_fraction: float
    strength: float
    implanted: Mapping[str, int] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    latency_fraction: float | None = None


Latency = Callable[[Structure, NDArray[Any]], float]
"""A structure and kept units of its groups, (G,), to the share of the base model's time."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The base model's cost and the fractions of it that may stay. latency: needed for a target that has one."""

    flops: float
    params: float
    target: Target
    latency: Latency | None = None

    def __post_init__(self) -> None:
        if self.target.latency_fraction is not None and self.latency is None:
            raise ValueError("a target of latency needs a way to predict it")

    def latency_fraction(self, structure: Structure, counts_G: NDArray[Any]) -> float | None:
        """Return the predicted share of the base model's time, None without a target of latency."""
        asked = self.latency if self.target.latency_fraction is not None else None
        return None if asked is None else asked(structure, counts_G)

    def excess(self, flops: float, params: float, latency: float | None = None) -> float:
        """Return the largest cost over its allowance: at most 1 when the target is met. latency: a share already."""
        allowed = [
            (flops, self.flops, self.target.flops_fraction),
            (params, self.params, self.target.params_fraction),
            (latency or 0.0, 1.0, self.target.latency_fraction),
        ]
        return max(cost / (whole * part) for cost, whole, part in allowed if part is not None)


def repair(
    structure: Structure,
    budget: Budget,
    *,
    path: Path | None,
    low_rank: LowRank | None = None,
    energies: Energies | None = None,
    replacement: Replacement | None = None,
    min_keep_fraction: float = 0.0,
    full_sizes: Mapping[str, int] | None = None,
    strength_before: float = 0.0,
) -> Amounts:
    """Return the amounts that meet the budget, no more than one unit (or rank) below it.

    `path` None keeps all channels. `energies` are what `low_rank` finds of the structure's layers. `replacement` gives
    some of the units that the path affects a cheaper form. `full_sizes` are the
    groups' sizes in the base model when `structure` is already cut. `strength_before` is what earlier steps of a
    schedule have spent; ranks follow the whole strength.
    Raises UnreachableTarget with the least that this recipe can reach.
    """
    ranks = None if low_rank is None else RankPath(structure, low_rank, energies or {})
    plan = _Plan(structure, budget, path, ranks, replacement, min_keep_fraction, full_sizes or {}, strength_before)
    if plan.at(0.0).excess <= 1:
        return plan.amounts(plan.at(0.0), 0.0)
    strong = plan.meeting()
    weak = 0.0
    for _ in range(_BISECTIONS):
        middle = (weak + strong) / 2
        weak, strong = (weak, middle) if plan.at(middle).excess <= 1 else (middle, strong)
    return plan.amounts(plan.topped_up(plan.at(strong), plan.at(weak)), strong)


@dataclass(frozen=True)
class _State:
    counts: Counts
    ranks: Mapping[int, int]
    whole: Mapping[int, int]
    flops: float
    params: float
    latency: float | None
    excess: float
    remainder: NDArray[np.float64] = field(repr=False)


class _Plan:
    def __init__(
        self,
        structure: Structure,
        budget: Budget,
        path: Path | None,
        ranks: RankPath | None,
        replacement: Replacement | None,
        min_keep_fraction: float,
        full_sizes: Mapping[str, int],
        strength_before: float,
    ) -> None:
        self._structure = structure
        self._budget = budget
        self._path = path
        self._before = strength_before
        self._sizes_G = np.array([g.size for g in structure.groups], dtype=np.int64)
        whole_G = np.array([full_sizes.get(g.name, g.size) for g in structure.groups])
        self._grid = structure.round_to
        least_G = np.ceil(min_keep_fraction * whole_G / self._grid).astype(np.int64) * self._grid
        self._least_G = np.minimum(np.maximum(least_G, structure.min_counts), self._sizes_G)
        self._ranks = ranks
        self._bands = None
        if path is not None and replacement is not None and replacement.share > 0:
            self._bands = Bands(structure, replacement, path, whole_G)

    def at(self, strength: float) -> _State:
        wanted_G = self._wanted(strength)
        counts_G = self._on_grid(wanted_G)
        remainder_G = np.where(counts_G < self._sizes_G, (wanted_G - counts_G) / self._grid, 0.0)
        ranks = {} if self._ranks is None else self._ranks.at(counts_G, strength + self._before)
        whole = {} if self._bands is None else self._bands.whole(counts_G, strength)
        return self._state(counts_G, ranks, whole, remainder_G)

    def _wanted(self, strength: float) -> NDArray[np.float64]:
        """Return how many units are to stay, (G,)."""
        if self._path is None:
            return self._sizes_G.astype(np.float64)
        return self._path(strength) if self._bands is None else self._bands.staying(strength)

    def _on_grid(self, wanted_G: NDArray[np.float64]) -> Counts:
        # The small addition keeps 0.5 * 16 from becoming 7 by rounding error.
        floored_G = np.floor(wanted_G / self._grid + 1e-9).astype(np.int64) * self._grid
        floored_G = np.where(wanted_G >= self._sizes_G, self._sizes_G, floored_G)
        return np.maximum(floored_G, self._least_G)

    def _state(
        self, counts_G: Counts, ranks: Mapping[int, int], whole: Mapping[int, int], remainder_G: NDArray[np.float64]
    ) -> _State:
        flops, params, kept = self._cost(counts_G, ranks, whole)
        latency = self._budget.latency_fraction(self._structure, counts_G)
        excess = self._budget.excess(flops, params, latency)
        return _State(counts_G, kept, whole, flops, params, latency, excess, remainder_G)

    def _cost(
        self, counts_G: Counts, ranks: Mapping[int, int], whole: Mapping[int, int]
    ) -> tuple[float, float, dict[int, int]]:
        flops = float(self._structure.total_flops(counts_G))
        params = float(self._structure.total_params(counts_G))
        if self._bands is not None:
            more_flops, more_params = self._bands.change(counts_G, whole)
            flops, params = flops + more_flops, params + more_params
        if self._ranks is None:
            return flops, params, {}
        more_flops, more_params, kept = self._ranks.change(counts_G, ranks)
        return flops + more_flops, params + more_params, kept

    def meeting(self) -> float:
        """Return a strength that meets the budget."""
        strength = 1.0
        while self.at(strength).excess > 1:
            strength *= 2
            if strength > _MOST_STRENGTH:
                raise self._unreachable(self.at(strength))
        return strength

    def _unreachable(self, least: _State) -> UnreachableTarget:
        flops = least.flops / self._budget.flops
        params = least.params / self._budget.params
        wanted = ", ".join(f"{k} {v:g}" for k, v in self._budget.target if v is not None)
        frozen = len(self._structure.frozen)
        timed = "" if least.latency is None else f", latency_fraction {least.latency:.3f}"
        return UnreachableTarget(
            f"target {wanted} cannot be reached by this recipe: the least it reaches is flops_fraction {flops:.3f}, "
            f"params_fraction {params:.3f}{timed} (minimum widths, {frozen} frozen groups). Raise the target, lower "
            "min_keep_fraction, let low_rank factorise more layers, or replace fewer of the affected units"
        )

    def topped_up(self, met: _State, missed: _State) -> _State:
        """Give back what fits: first what the last step of the bisection took, then by largest remainder."""
        jumped = np.flatnonzero(missed.counts > met.counts).tolist()
        waiting = np.argsort(-met.remainder, kind="stable").tolist()
        order = jumped + [i for i in waiting if met.remainder[i] > 1e-9 and i not in set(jumped)]
        state = met
        for i in order:
            counts_G = state.counts.copy()
            counts_G[i] = self._next_up(i, int(counts_G[i]))
            state = self._better(state, counts_G, state.ranks, state.whole)
        before = None
        while state is not before:
            before, state = state, self._one_whole_each(self._one_rank_each(state))
        return state

    def _one_rank_each(self, state: _State) -> _State:
        for i in state.ranks:
            if i in state.ranks and self._ranks is not None:
                more = self._ranks.one_more(state.counts, state.ranks, i)
                state = self._better(state, state.counts, more, state.whole) if more != state.ranks else state
        return state

    def _one_whole_each(self, state: _State) -> _State:
        for i in state.whole:
            if self._bands is not None:
                more = self._bands.one_more(state.counts, state.whole, i)
                state = self._better(state, state.counts, state.ranks, more) if more != state.whole else state
        return state

    def _next_up(self, group: int, count: int) -> int:
        return min(count + self._grid, int(self._sizes_G[group]))

    def _better(self, state: _State, counts_G: Counts, ranks: Mapping[int, int], whole: Mapping[int, int]) -> _State:
        tried = self._state(counts_G, ranks, whole, state.remainder)
        return tried if tried.excess <= 1 else state

    def amounts(self, state: _State, strength: float) -> Amounts:
        return Amounts(
            counts={g.name: int(c) for g, c in zip(self._structure.groups, state.counts, strict=True)},
            ranks={self._structure.layers[i].name: r for i, r in state.ranks.items()},
            flops_fraction=state.flops / self._budget.flops,
            params_fraction=state.params / self._budget.params,
            strength=strength,
            latency_fraction=state.latency,
            implanted={
                self._structure.names[i]: int(state.counts[i]) - count
                for i, count in state.whole.items()
                if count < state.counts[i]
            },
        )
