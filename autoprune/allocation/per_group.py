"""Searched shares: every group has its own keep fraction.

At strength s group g keeps keep_fraction_g ** s of its units, so that the repair to a target preserves which groups
give more and which give less, and log(keep) stays in the same proportion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autoprune.allocation._base import Allocation, AllocationContext, Path
from autoprune.allocation._ranking import power_path
from autoprune.fields import hyperparameters, per_item


@dataclass(frozen=True, kw_only=True)
class PerGroup(Allocation):
    """Remove from each group its own share."""

    keep_fraction: float | Mapping[str, float] = per_item(
        0.5,
        of="group",
        valid=(0.01, 1.0),
        search=(0.15, 0.98),
        unmatched=1.0,
        help="share of a group's units that stays, relative to the other groups",
    )

    def path(self, context: AllocationContext) -> Path:
        declared = hyperparameters(self)["keep_fraction"]
        names = [g.name for g in context.structure.groups]
        wanted = declared.resolve("per_group.keep_fraction", self.keep_fraction, names)  # type: ignore[union-attr]
        return power_path(context.structure, {name: wanted[name] for name in context.scores})
