"""Low-rank methods replace a layer by a product of thinner layers."""

from autoprune.lowrank._base import LowRank

__all__ = ["LowRank"]
