"""Searched shares by stage: the groups of one feature-map size have one keep fraction.

As in Li et al., ICLR 2017, arXiv 1608.08710, section 3.2, whose amounts are set by stage: few numbers to search, and
they carry over between targets. At strength s the groups of stage t keep keep_fraction_t ** s of their units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autoprune.allocation._base import Allocation, AllocationContext, Path
from autoprune.allocation._ranking import power_path
from autoprune.fields import hyperparameters, per_item


@dataclass(frozen=True, kw_only=True)
class PerStage(Allocation):
    """Remove from each stage its own share."""

    keep_fraction: float | Mapping[str, float] = per_item(
        0.5,
        of="stage",
        valid=(0.01, 1.0),
        search=(0.15, 0.98),
        unmatched=1.0,
        help="share of a stage's units that stays, relative to the other stages",
    )

    def path(self, context: AllocationContext) -> Path:
        stages = context.structure.stages
        declared = hyperparameters(self)["keep_fraction"]
        names = list(dict.fromkeys(stages.values()))
        wanted = declared.resolve("per_stage.keep_fraction", self.keep_fraction, names)  # type: ignore[union-attr]
        return power_path(context.structure, {name: wanted[stages[name]] for name in context.scores})
