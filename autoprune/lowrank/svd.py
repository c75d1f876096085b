"""Truncated singular value decomposition of a layer's weight, without data.

    W = U S V,   W ~ (U_R sqrt(S_R)) (sqrt(S_R) V_R),   ||W - W_R||_F ** 2 = sum over i > R of S_i ** 2

R rank. A linear layer or 1x1 convolution is the matrix (out, in). A larger convolution is a matrix in one
of two ways:

channel   (out, in * kernel): the full kernel to R channels, then 1x1. Zhang et al., TPAMI 2016, arXiv
          1505.06798, fitted to the weights where the paper fits the responses. Full rank min(out, in *
          kernel).
spatial   (in * height, out * width): a column (height x 1) to R channels, then a row (1 x width).
          Introduced by Jaderberg et al., BMVC 2014, arXiv 1405.3866; the SVD of this matrix is the
          optimum, Tai et al., ICLR 2016, arXiv 1511.06067. Full rank min(in * height, out * width).

Stride, padding and dilation go with their axis, so full rank reproduces the layer for all of them. The
spatial way needs a two-dimensional kernel longer than 1 on both axes; the other convolutions take the
channel way. Left out: grouped convolutions and layers with a single input or output channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from autoprune.fields import PerItem, choice, hyperparameters, per_item
from autoprune.lowrank import _pairs
from autoprune.lowrank._base import LowRank
from autoprune.lowrank._matrices import Axes, as_matrix, as_weights, truncated_svd

if TYPE_CHECKING:
    from autoprune.graph import Layer


@dataclass(frozen=True, kw_only=True)
class Svd(LowRank):
    """Split a layer into two by the singular vectors of its weight."""

    rank_fraction: float | Mapping[str, float] = per_item(
        0.5,
        of="layer",
        valid=(0.001, 1.0),
        search=(0.2, 1.0),
        unmatched=1.0,
        help="rank relative to that at which the two cost as much as the layer; 1 leaves it as it is",
    )
    scheme: str = choice(
        "spatial",
        options=("spatial", "channel"),
        help="how convolutions split: column then row, or full kernel then 1x1",
    )

    def rank_fractions(self, layers: Sequence[Layer]) -> dict[str, float]:
        """Raises BadRecipe for a key of the mapping that matches no eligible layer."""
        declared = cast(PerItem, hyperparameters(self)["rank_fraction"])
        names = [layer.name for layer in layers if _pairs.is_splittable(layer)]
        return declared.resolve("Svd.rank_fraction", self.rank_fraction, names)

    def full_rank(self, layer: Layer, n_in: int, n_out: int) -> int:
        return _pairs.pair_full_rank(layer, self._axes(layer.kernel), n_in, n_out)

    def flops(self, layer: Layer, n_in: int, n_out: int, rank: int) -> float:
        return _pairs.pair_flops(layer, self._axes(layer.kernel), n_in, n_out, rank)

    def params(self, layer: Layer, n_in: int, n_out: int, rank: int) -> int:
        return _pairs.pair_params(layer, self._axes(layer.kernel), n_in, n_out, rank)

    def skeleton(self, module: nn.Module, rank: int) -> nn.Module:
        """Raises NotApplicable for anything but a plain, ungrouped layer, ValueError for a rank below 1."""
        return _pairs.empty_pair(module, self._axes(_pairs.kernel_of(module)), rank)

    def factor(self, module: nn.Module, rank: int) -> nn.Module:
        """Raises as `skeleton` does, ValueError above full rank, TrialFailed for weights not finite."""
        axes = self._axes(_pairs.kernel_of(module))
        weight = cast(Tensor, module.weight).detach()
        left, right = truncated_svd(as_matrix(weight, axes), rank)
        return _pairs.filled_pair(module, axes, *as_weights(left, right, tuple(weight.shape), axes))

    def _axes(self, kernel: tuple[int, ...]) -> Axes:
        if self.scheme == "spatial" and len(kernel) == 2 and min(kernel) > 1:
            return (True, False)
        return (True,) * len(kernel)
