"""Schedules decide when how much is cut."""

from autoprune.schedules._base import Schedule, Step

__all__ = ["Schedule", "Step"]
