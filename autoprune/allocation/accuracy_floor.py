"""Bottom-up search under a falling accuracy floor. Xie et al. 2021, "Pruning with Compensation", arXiv 2108.13728.

With n groups in the order of the network and accuracy A of the uncut model, the i-th group (from 1) has to leave

    floor_i = A - i * acc_drop / n

Its removed share is found by bisection between 0 and max_removed_fraction in `steps` halvings, with all groups before
it already cut; the last share that passed is taken, 0 if none did. A group keeps max(1, int(size * (1 - share))). Unit:
accuracy, 0 to 1. Every measured model is cut by the criterion and corrected as the recipe does it without training.

The path keeps size * (1 - share) ** t, so that any target is met with the proportions that were found; groups that bear
nothing are cut only when the others have nothing left.
Departs from the paper: its script measures on the test split, this on training samples; what is found is scaled to the
target, where the paper takes it as it comes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from autoprune.allocation._base import Allocation, AllocationContext, Path
from autoprune.allocation._ranking import lenient_path
from autoprune.allocation._sensitivities import kept_counts
from autoprune.evidence import Evidence
from autoprune.fields import integer, real


@dataclass(frozen=True, kw_only=True)
class AccuracyFloor(Allocation):
    """Remove from each group in turn as much as keeps the accuracy above a floor that falls with depth."""

    needs: ClassVar[frozenset[str]] = frozenset({Evidence.GROUP_SENSITIVITIES})

    acc_drop: float = real(0.05, valid=(0.0, 1.0), search=(0.01, 0.1), help="accuracy that all cuts together may cost")
    steps: int = integer(5, valid=(1, 20), search=(4, 8), help="halvings for each group")
    max_removed_fraction: float = real(0.9, valid=(0.01, 1.0), search=(0.5, 0.95), help="most that may go of a group")
    samples: int = integer(
        512, valid=(2, 10_000_000), search=(256, 2048), log=True, help="training samples of each measurement"
    )

    def measured_samples(self, groups: int) -> int:
        return self.samples * (1 + self.steps * groups)

    def path(self, context: AllocationContext) -> Path:
        measure = context.measure_for(self.name)
        whole = measure({}, self.samples).accuracy
        names = [g.name for g in context.structure.groups if g.name in context.scores]
        shares: dict[str, float] = {}
        kept: dict[str, int] = {}
        for name, least in zip(names, floors(whole, self.acc_drop, len(names)), strict=True):

            def count(share: float, name: str = name) -> int:
                return int(kept_counts(context.full_sizes[name], [1 - share], context.structure.round_to)[0])

            def passes(share: float, name: str = name, least: float = least) -> bool:
                return measure(kept | {name: count(share)}, self.samples).accuracy >= least

            shares[name] = largest_passing(passes, self.max_removed_fraction, self.steps)
            kept[name] = count(shares[name])
        return lenient_path(context.structure, {name: 1 - share for name, share in shares.items()})


def floors(accuracy: float, acc_drop: float, groups: int) -> list[float]:
    """Return the least accuracy after each of so many groups is cut."""
    return [accuracy - (i + 1) * acc_drop / groups for i in range(groups)]


def largest_passing(passes: Callable[[float], bool], most: float, steps: int) -> float:
    """Return the last share that passed when [0, most] was halved `steps` times; 0 if none did."""
    low, high = 0.0, most
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if passes(middle) else (low, middle)
    return low
