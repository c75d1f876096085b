"""The same share of every group. Li et al., ICLR 2017, arXiv 1608.08710, is usually compared in this form."""

from __future__ import annotations

from dataclasses import dataclass

from autoprune.allocation._base import Allocation, AllocationContext, Path
from autoprune.allocation._ranking import power_path


@dataclass(frozen=True, kw_only=True)
class Uniform(Allocation):
    """Remove the same share of every group."""

    def path(self, context: AllocationContext) -> Path:
        return power_path(context.structure, dict.fromkeys(context.scores, 0.5))
