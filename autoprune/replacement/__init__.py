"""Replacements give units that a cut affects, or whole layers, a cheaper form instead of removing them."""

from autoprune.replacement._bands import Bands, rows_by_layer
from autoprune.replacement._base import Replacement

__all__ = ["Bands", "Replacement", "rows_by_layer"]
