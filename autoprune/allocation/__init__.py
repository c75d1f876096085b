"""Allocation decides how much to remove from each group."""

from autoprune.allocation._base import Allocation, AllocationContext, Cost, Measure, Path

__all__ = ["Allocation", "AllocationContext", "Cost", "Measure", "Path"]
