"""Sparsity: masks over single weights, chosen once, in rounds, or moved during training."""

from autoprune.sparsity._base import Sparsified, Sparsity, SparsityContext

__all__ = ["Sparsified", "Sparsity", "SparsityContext"]
