"""Allocation decides how much to remove from each group."""

from autoprune.allocation._base import Allocation, Path

__all__ = ["Allocation", "Path"]
