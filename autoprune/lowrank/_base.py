"""The contract of the room `lowrank`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from autoprune.rooms import Method

if TYPE_CHECKING:
    from torch import nn

    from autoprune.graph import Layer


class LowRank(Method):
    """Replaces a layer by a product of thinner ones.

    Widths `n_in`, `n_out` are those of the layer after channels were cut; FLOPs are 2 x MACs for batch 1,
    summed over all calls of the layer.
    """

    room: ClassVar[str] = "lowrank"

    @abstractmethod
    def rank_fractions(self, layers: Sequence[Layer]) -> dict[str, float]:
        """Return the wanted rank fraction, in (0, 1], of every eligible layer; 1 leaves a layer as it is.

        Relative to the rank at which the factorised layer costs as many FLOPs as the layer itself.
        """

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
    def factor(self, module: nn.Module, rank: int) -> nn.Module:
        """Return the skeleton filled so that it approximates the module; the module is untouched."""
