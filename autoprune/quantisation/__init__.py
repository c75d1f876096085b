"""Quantisation: numbers of fewer bits in the file that is deployed."""

from autoprune.quantisation._base import Batches, Quantisation

__all__ = ["Batches", "Quantisation"]
