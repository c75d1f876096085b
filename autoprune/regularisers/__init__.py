"""Regularisers shape the weights by training before the cut, so that what goes is missed less."""

from autoprune.regularisers._base import Choose, Regulariser, RegulariserContext, Shaped

__all__ = ["Choose", "Regulariser", "RegulariserContext", "Shaped"]
