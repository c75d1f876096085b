"""The same share of every group. Li et al., ICLR 2017, arXiv 1608.08710, is usually compared in this form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from autoprune.allocation._base import Allocation, Path
from autoprune.allocation._ranking import power_path
from autoprune.graph import Structure


@dataclass(frozen=True, kw_only=True)
class Uniform(Allocation):
    """Remove the same share of every group."""

    def path(self, scores: Mapping[str, Tensor], structure: Structure) -> Path:
        return power_path(structure, dict.fromkeys(scores, 0.5))
