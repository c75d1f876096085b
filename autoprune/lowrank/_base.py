"""The contract of the room `lowrank`."""

from __future__ import annotations

import bisect
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from autoprune.rooms import Method

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from autoprune.data import Data
    from autoprune.evidence import ModelEvidence
    from autoprune.graph import Layer
    from autoprune.training import Train


@dataclass(frozen=True, kw_only=True)
class LowRankContext:
    """What a method that trains works with. What `train` spends is counted by whoever made the context."""

    data: Data
    device: torch.device
    train: Train


class LowRank(Method):
    """Replaces a layer by a product of thinner ones.

    Widths `n_in`, `n_out` are those of the layer after channels were cut; FLOPs are 2 x MACs for batch 1,
    summed over all calls of the layer. One whole number, the rank, says how thin the product is; what it means is the
    method's own, but no cost falls when it grows.
    """

    room: ClassVar[str] = "lowrank"

    @property
    def fits_outputs(self) -> bool:
        """Whether `factor` looks at the moments of what a layer reads (`Evidence.INPUT_MOMENTS`)."""
        return False

    def shape(self, model: nn.Module, ranks: Mapping[str, int], context: LowRankContext) -> None:
        """Train the model in place, before its layers are factorised, so that they come to the ranks given by name.

        Most methods do nothing. Raises BadRecipe as the context's training does, LossNotFinite or OutOfMemory.
        """

    @abstractmethod
    def rank_fractions(self, layers: Sequence[Layer]) -> dict[str, float]:
        """Return the wanted share, in (0, 1], of every eligible layer; 1 leaves a layer as it is.

        The share of the layer's FLOPs that the factorised layer may cost, or of the energy that it has to keep where
        `energies` knows the layer.
        """

    def energies(self, layers: Sequence[Layer], evidence: ModelEvidence) -> dict[str, NDArray[np.float64]]:
        """Return by layer the shares (K,) of its energy kept at ranks 1 to K, its full rank; K >= 1.

        None fall, and the last is 1. Layers without an entry get their ranks by cost.
        """
        return {}

    def largest_rank(self, layer: Layer, n_in: int, n_out: int, flops: float) -> int:
        """Return the largest rank, from 1 to the full one, that costs at most so many FLOPs; 1 if none does."""
        ranks = range(1, self.full_rank(layer, n_in, n_out) + 1)
        return max(1, bisect.bisect_right(ranks, flops, key=lambda rank: self.flops(layer, n_in, n_out, rank)))

    @abstractmethod
    def full_rank(self, layer: Layer, n_in: int, n_out: int) -> int:
        """Return the largest rank that the factorisation of a layer of these widths can have."""

    @abstractmethod
    def flops(self, layer: Layer, n_in: int, n_out: int, rank: int) -> float:
        """Return the FLOPs of the factorised layer."""

    @abstractmethod
    def params(self, layer: Layer, n_in: int, n_out: int, rank: int) -> int:
        """Return the number of parameters of the factorised layer, bias included."""

    @abstractmethod
    def skeleton(self, module: nn.Module, rank: int) -> nn.Module:
        """Return the factorised layer of a module, weights not yet set, on its device and in its dtype."""

    @abstractmethod
    def factor(self, module: nn.Module, rank: int, moments: tuple[Tensor, Tensor] | None = None) -> nn.Module:
        """Return the skeleton filled so that it approximates the module; the module is untouched.

        moments: mean (D,) and second moment (D, D) of what the module reads, as `ModelEvidence.input_moments` has
        them; looked at only where the method `fits_outputs`.
        """
