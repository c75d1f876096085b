"""Low-rank methods replace a layer by a product of thinner layers."""

from autoprune.lowrank._base import LowRank, LowRankContext
from autoprune.lowrank._path import Energies, RankPath

__all__ = ["Energies", "LowRank", "LowRankContext", "RankPath"]
