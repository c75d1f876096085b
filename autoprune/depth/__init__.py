"""Depth criteria score residual blocks; the lowest scores go first."""

from autoprune.depth._base import DepthCriterion

__all__ = ["DepthCriterion"]
