"""Tucker decomposition of a convolution along its two channel axes. Kim et al., ICLR 2016, arXiv 1511.06530.

    W[o, i, k] ~ sum over q, p of B[o, q] C[q, p, k] A[i, p]

A reduces the I input channels to P (1x1), the core C keeps the kernel, with stride, padding and dilation, and
takes P channels to Q, and B brings these to the O output channels (1x1). A and B have orthonormal columns: the
leading singular vectors of the two unfoldings of W (HOSVD, De Lathauwer et al., SIAM J. Matrix Anal. Appl.
21(4), 2000), then alternately those of W already reduced along the other axis (HOOI, their second paper), which
never loses energy, until the core's grows by less than 1e-5 of itself, or 10 times; then C = B^T W A.

The paper chooses P and Q layer by layer. Here one rank R says both: with P* and Q* the largest that can be of
use, P* = min(I, O * kernel) and Q* = min(O, I * kernel), the full rank is the larger of the two, and

    P = ceil(P* R / full),   Q = ceil(Q* R / full)

so that both axes keep the same share. FLOPs are quadratic in R. Full rank reproduces the layer.

A linear layer or a kernel of one position has no kernel for a core to keep: it is split in two by its singular
value decomposition, of full rank min(out, in). Left out: grouped convolutions, whose groups share no channel axis
to reduce, and layers with a single input or output channel.

With `ranks: energy` the energy kept is 1 - (e_P + e_Q), where e_P and e_Q are the shares of the squared singular
values of the two unfoldings that are left out: no less is kept than that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from autoprune.lowrank import _pairs
from autoprune.lowrank._matrices import as_matrix, as_weights, check_finite, kept_shares, truncated_svd
from autoprune.lowrank._ranked import Ranked

if TYPE_CHECKING:
    from autoprune.graph import Layer

_SWEEPS = 10
_LEAST_GAIN = 1e-5


@dataclass(frozen=True, kw_only=True)
class Tucker2(Ranked):
    """Split a convolution into 1x1, a small core with its kernel, and 1x1."""

    def full_rank(self, layer: Layer, n_in: int, n_out: int) -> int:
        if not _has_core(layer.kernel):
            return _pairs.pair_full_rank(layer, _one(layer.kernel), n_in, n_out)
        return max(_full_ranks(layer.kernel, n_in, n_out))

    def flops(self, layer: Layer, n_in: int, n_out: int, rank: int) -> float:
        if not _has_core(layer.kernel):
            return _pairs.pair_flops(layer, _one(layer.kernel), n_in, n_out, rank)
        p, q = _ranks(layer.kernel, n_in, n_out, rank)
        core = p * q * math.prod(layer.kernel) + q * n_out
        return 2 * sum(
            n_in * p * math.prod(call.in_positions) + core * math.prod(call.out_positions) for call in layer.calls
        )

    def params(self, layer: Layer, n_in: int, n_out: int, rank: int) -> int:
        if not _has_core(layer.kernel):
            return _pairs.pair_params(layer, _one(layer.kernel), n_in, n_out, rank)
        p, q = _ranks(layer.kernel, n_in, n_out, rank)
        bias = n_out if layer.bias is not None else 0
        return n_in * p + p * q * math.prod(layer.kernel) + q * n_out + bias

    def skeleton(self, module: nn.Module, rank: int) -> nn.Module:
        """Raises NotApplicable for anything but a plain, ungrouped layer, ValueError for a rank below 1."""
        return _empty(module, rank)

    def factor(self, module: nn.Module, rank: int, moments: tuple[Tensor, Tensor] | None = None) -> nn.Module:
        """Raises as `skeleton` does, ValueError above full rank, TrialFailed for weights not finite."""
        thin, weight = _empty(module, rank), cast(Tensor, module.weight).detach()
        kernel = tuple(weight.shape[2:])
        if not _has_core(kernel):
            left, right = truncated_svd(as_matrix(weight, _one(kernel)), rank)
            return _pairs.fill(thin, module, *as_weights(left, right, tuple(weight.shape), _one(kernel)))
        out_features, in_features = weight.shape[:2]
        full = max(_full_ranks(kernel, in_features, out_features))
        if rank > full:
            raise ValueError(f"a weight of shape {tuple(weight.shape)} has at most rank {full}, got {rank}")
        first, core, last = tucker2(weight, *_ranks(kernel, in_features, out_features, rank))
        ones = (1,) * len(kernel)
        return _pairs.fill(
            thin, module, first.T.reshape(-1, in_features, *ones), core, last.reshape(out_features, -1, *ones)
        )

    def kept_energy(self, weight: Tensor, spread: Tensor | None) -> Tensor:
        kernel = tuple(weight.shape[2:])
        check_finite(weight)
        if not _has_core(kernel):
            return kept_shares(torch.linalg.svdvals(weight.flatten(1)).square())
        out_features, in_features = weight.shape[:2]
        p_K, q_K = _all_ranks(kernel, in_features, out_features)
        along_in = kept_shares(torch.linalg.svdvals(weight.transpose(0, 1).flatten(1)).square())
        along_out = kept_shares(torch.linalg.svdvals(weight.flatten(1)).square())
        return (along_in[p_K - 1] + along_out[q_K - 1] - 1).clamp_min(0)


def tucker2(weight_OIK: Tensor, p: int, q: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return A (I, P), C (Q, P, *kernel) and B (O, Q), float64. Raises TrialFailed if the weight is not finite."""
    check_finite(weight_OIK)
    weight = weight_OIK.double()
    last_OQ = _leading(weight.flatten(1), q)
    energy = 0.0
    for _ in range(_SWEEPS):
        by_outputs = torch.einsum("oi...,oq->iq...", weight, last_OQ)
        first_IP = _leading(by_outputs.flatten(1), p)
        by_inputs = torch.einsum("oi...,ip->op...", weight, first_IP)
        last_OQ = _leading(by_inputs.flatten(1), q)
        core = torch.einsum("op...,oq->qp...", by_inputs, last_OQ)
        before, energy = energy, float(core.square().sum())
        if energy <= before * (1 + _LEAST_GAIN):
            break
    return first_IP, core, last_OQ


def _leading(matrix_MN: Tensor, rank: int) -> Tensor:
    """Return the left singular vectors (M, R) of the largest singular values."""
    # from the M x M products, many times faster than the SVD where N = M * kernel; float64 can bear the squares
    vectors_MM: Tensor = torch.linalg.eigh(matrix_MN @ matrix_MN.T)[1]
    return vectors_MM.flip(1)[:, :rank]


def _has_core(kernel: tuple[int, ...]) -> bool:
    return math.prod(kernel) > 1


def _one(kernel: tuple[int, ...]) -> tuple[bool, ...]:
    """The first of two layers takes the kernel, of one position."""
    return (True,) * len(kernel)


def _full_ranks(kernel: tuple[int, ...], n_in: int, n_out: int) -> tuple[int, int]:
    return min(n_in, n_out * math.prod(kernel)), min(n_out, n_in * math.prod(kernel))


def _ranks(kernel: tuple[int, ...], n_in: int, n_out: int, rank: int) -> tuple[int, int]:
    """Return the channels of the core, in and out."""
    p, q = _full_ranks(kernel, n_in, n_out)
    return -(-p * rank // max(p, q)), -(-q * rank // max(p, q))


def _all_ranks(kernel: tuple[int, ...], n_in: int, n_out: int) -> tuple[Tensor, Tensor]:
    """Return the channels of the core, in and out, (K,) each, at ranks 1 to K, the full one."""
    full = max(_full_ranks(kernel, n_in, n_out))
    pairs = torch.tensor([_ranks(kernel, n_in, n_out, rank) for rank in range(1, full + 1)])
    return pairs[:, 0], pairs[:, 1]


def _empty(module: nn.Module, rank: int) -> nn.Sequential:
    kernel = _pairs.kernel_of(module)
    _pairs.check_rank(rank)
    if not _has_core(kernel):
        return _pairs.empty_pair(module, _one(kernel), rank)
    conv = cast(nn.Conv2d, module)
    return _pairs.empty_triple(conv, *_ranks(kernel, conv.in_channels, conv.out_channels, rank))
