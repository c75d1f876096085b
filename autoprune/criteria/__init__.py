"""Criteria score units; the lowest scores go first."""

from autoprune.criteria._base import Criterion

__all__ = ["Criterion"]
