"""Truncated singular value decomposition of a layer's weight, or of what it computes on data.

    W = U S V,   W ~ (U_R sqrt(S_R)) (sqrt(S_R) V_R),   ||W - W_R||_F ** 2 = sum over i > R of S_i ** 2

R rank. A linear layer or 1x1 convolution is the matrix (out, in). A larger convolution is a matrix in one
of two ways:

channel   (out, in * kernel): the full kernel to R channels, then 1x1. Zhang et al., TPAMI 2016, arXiv
          1505.06798. Full rank min(out, in * kernel).
spatial   (in * height, out * width): a column (height x 1) to R channels, then a row (1 x width).
          Introduced by Jaderberg et al., BMVC 2014, arXiv 1405.3866; the SVD of this matrix is the
          optimum, Tai et al., ICLR 2016, arXiv 1511.06067. Full rank min(in * height, out * width).

Stride, padding and dilation go with their axis, so full rank reproduces the layer for all of them. The
spatial way needs a two-dimensional kernel longer than 1 on both axes; the other convolutions take the
channel way. Left out: grouped convolutions and layers with a single input or output channel.

With `reconstruct: outputs` the pair reproduces the outputs on training data, E ||W x - W~ x|| ** 2 over what
the layer reads, x: in the channel way the outputs are projected on their R principal directions, the optimum
(equation 8 of Zhang et al., their linear case); in the spatial way the row is fitted behind the column of the
SVD by least squares. x is that of the cut model before any layer is factorised. A layer with a bias is fitted
around the mean of x, which its bias then restores; without one x is taken as it is. Layers whose inputs are not
gathered (one- and three-dimensional, padded otherwise than by zeros, over 4608 weights per output) are fitted to
their weights. Nothing is gathered beforehand: the moments are those of each trial's own model, and those of the base
model are looked at only for ranks by the energy of outputs.

With `ranks: energy` the energy is S_i ** 2, or in the channel way fitted to outputs that of the principal
directions of the outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from autoprune.fields import choice
from autoprune.lowrank import _pairs
from autoprune.lowrank._matrices import Axes, as_matrix, as_weights, check_finite, kept_shares, truncated_svd
from autoprune.lowrank._ranked import Paired
from autoprune.lowrank._responses import best_factors, refitted, response_energy, spread_of


@dataclass(frozen=True, kw_only=True)
class Svd(Paired):
    """Split a layer into two by the singular vectors of its weight."""

    scheme: str = choice(
        "spatial",
        options=("spatial", "channel"),
        help="how convolutions split: column then row, or full kernel then 1x1",
    )
    reconstruct: str = choice(
        "weights",
        options=("weights", "outputs"),
        help="what the two come nearest to: the layer's weights, or its outputs on training data",
    )

    @property
    def fits_outputs(self) -> bool:
        return self.reconstruct == "outputs"

    def factor(self, module: nn.Module, rank: int, moments: tuple[Tensor, Tensor] | None = None) -> nn.Module:
        """Raises as `skeleton` does, ValueError above full rank, TrialFailed for weights not finite."""
        axes = self.axes(_pairs.kernel_of(module))
        pair = _pairs.empty_pair(module, axes, rank)
        weight = cast(Tensor, module.weight).detach()
        matrix, shift = as_matrix(weight, axes), None
        left, right = truncated_svd(matrix, rank)
        if self.fits_outputs and moments is not None:
            spread_DD = spread_of(*moments, centre=module.bias is not None)
            shape, matrix = tuple(weight.shape), matrix.double()
            left, right = _fitted(matrix, left.double(), right.double(), shape, axes, spread_DD)
            shift = _by_inputs(matrix - left @ right, shape, axes).T @ moments[0]
        return _pairs.fill(pair, module, *as_weights(left, right, tuple(weight.shape), axes), shift=shift)

    def kept_energy(self, weight: Tensor, spread: Tensor | None) -> Tensor:
        axes = self.axes(tuple(weight.shape[2:]))
        matrix = as_matrix(weight, axes)
        check_finite(matrix)
        if spread is None or not all(axes):
            return kept_shares(torch.linalg.svdvals(matrix).square())
        return kept_shares(response_energy(matrix, spread)[0][: min(matrix.shape)])

    def axes(self, kernel: tuple[int, ...]) -> Axes:
        if self.scheme == "spatial" and len(kernel) == 2 and min(kernel) > 1:
            return (True, False)
        return (True,) * len(kernel)


def _fitted(
    matrix: Tensor, left: Tensor, right: Tensor, shape: tuple[int, ...], axes: Axes, spread_DD: Tensor
) -> tuple[Tensor, Tensor]:
    """Return factors like left and right, those of least weight error, that reproduce outputs. All float64."""
    if all(axes):
        return best_factors(matrix, spread_DD, left.shape[1])
    # the row reads R channels at as many columns as it is wide
    wide = torch.eye(shape[3], dtype=left.dtype, device=left.device)
    row_PO = _by_inputs(right, (shape[0], len(right), 1, shape[3]), axes)
    column_DP = torch.einsum("mr,wv->mwrv", left, wide).reshape(len(spread_DD), -1)
    row_PO = refitted(_by_inputs(matrix, shape, axes), spread_DD, column_DP, row_PO)
    return left, row_PO.reshape(len(right), shape[3], shape[0]).transpose(1, 2).reshape(len(right), -1)


def _by_inputs(matrix: Tensor, shape: tuple[int, ...], axes: Axes) -> Tensor:
    """Return the matrix of a weight (O, I, *kernel), or of a row, with a row for each of its inputs: (D, O)."""
    if all(axes):
        return matrix
    o, i, h, w = shape
    return matrix.reshape(i, h, o, w).transpose(2, 3).reshape(-1, o)
