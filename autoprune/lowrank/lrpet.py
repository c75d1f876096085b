"""Low-rank projection with energy transfer (LRPET). Guo et al., TNNLS 2024, arXiv 2204.05566.

The full model is trained, and every `interval` each weight W (N outputs, M = inputs * kernel) is projected onto rank R:

    D W = U S V^T,    c = sqrt(sum over all i of S_i ** 2 / sum over i <= R of S_i ** 2)
    W <- D (D ** 2 + 1e-5) ** -1 U_R (c S_R) V_R^T,    D = diag(gamma / sqrt(variance + eps))

D are the scales of the batch norm behind the layer, with its running variance: the projection is that of what inference
computes. Without one D is the identity, and so is its damped inverse. c gives back the energy that was cut off.
Between projections the weights are free, and the optimiser's momentum and the norms are not touched. The training
ends with a projection, so that W has rank R and the pair by its SVD is exact: the kernel to R channels, then 1x1.

R is the share `rank_fraction` of the min(N, M) singular values, or of the layer's FLOPs or energy (`ranks`), and like
all ranks is repaired to the recipe's target. Layers that a pair would make no cheaper stay dense and are not projected.
How the training goes otherwise is the recipe's training recovery; it starts from the weights that the recipe says.

Read were the abstract and the authors' code. That code pairs norms with convolutions by counting, puts an identity
in the place of a layer of zeros, and tests models before their last projection; here norms are found in the forward
pass, zeros stay zeros, and what is measured is the pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from autoprune.fields import again, choice, real
from autoprune.lowrank import _pairs
from autoprune.lowrank._base import LowRankContext
from autoprune.lowrank._matrices import as_matrix, as_weights, check_finite, kept_shares, truncated_svd
from autoprune.lowrank._ranked import Paired, Ranked
from autoprune.modules import unwrapped
from autoprune.norms import norms_behind
from autoprune.training import StepHook

if TYPE_CHECKING:
    from autoprune.graph import Layer

_DAMPING = 1e-5
_LEAST = 1e-4
"""A layer whose largest singular value is below this is left alone."""


@dataclass(frozen=True, kw_only=True)
class Lrpet(Paired):
    """Train, and project every layer onto its rank now and then."""

    ranks: str = again(
        Ranked,
        "ranks",
        default="values",
        options=("values", "searched", "energy"),
        search=("values",),
        help="what shares are shares of: the number of singular values, FLOPs, or energy (squared singular values) of "
        "the weights that training starts from",
    )
    epochs: float = real(400.0, valid=(0.01, 10000.0), search=(1.0, 400.0), log=True, help="of training")
    interval: float = real(1.0, valid=(0.001, 1000.0), search=(0.1, 2.0), log=True, help="epochs between projections")
    layers: str = choice(
        "convolutions", options=("convolutions", "all"), help="which layers: convolutions only, or linear ones too"
    )
    transfer: bool = choice(True, options=(True, False), search=(True,), help="give the energy cut off to what stays")
    rectify: bool = choice(True, options=(True, False), search=(True,), help="project weights times the norm's scales")

    def splits(self, layer: Layer) -> bool:
        return super().splits(layer) and (self.layers == "all" or layer.kind == "conv")

    def kept_energy(self, weight: Tensor, spread: Tensor | None) -> Tensor:
        if self.ranks == "values":
            full = min(as_matrix(weight, self.axes(tuple(weight.shape[2:]))).shape)
            return torch.arange(1, full + 1, dtype=torch.float64) / full
        matrix = weight.flatten(1)
        check_finite(matrix)
        return kept_shares(torch.linalg.svdvals(matrix).square())

    def shape(self, model: nn.Module, ranks: Mapping[str, int], context: LowRankContext) -> None:
        """Raises TrialFailed when a weight becomes NaN or infinite."""
        inputs = context.data.train.one_sample(context.device)
        behind = norms_behind(model.to(context.device), inputs) if self.rectify else {}
        hook = _Projecting(self, ranks, behind)
        context.train(model, self.epochs, hook, "project")
        if not hook.fresh:
            # a training that ended before its last step
            hook.project(model)

    def factor(self, module: nn.Module, rank: int, moments: tuple[Tensor, Tensor] | None = None) -> nn.Module:
        """Raises as `skeleton` does, ValueError above full rank, TrialFailed for weights not finite."""
        axes = self.axes(_pairs.kernel_of(module))
        pair, weight = _pairs.empty_pair(module, axes, rank), cast(Tensor, module.weight).detach()
        left, right = truncated_svd(as_matrix(weight, axes), rank)
        return _pairs.fill(pair, module, *as_weights(left, right, tuple(weight.shape), axes))


class _Projecting(StepHook):
    """Projects the layers of a model in training. behind: layer by the batch norm behind it."""

    def __init__(self, method: Lrpet, ranks: Mapping[str, int], behind: Mapping[str, str]) -> None:
        self._method, self._ranks, self._behind = method, ranks, behind
        self._model = nn.Module()
        self._every = self._steps = 1
        self.fresh = False
        """Whether the weights are as the last projection left them."""

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        self._model, self._steps = unwrapped(model), steps
        self._every = max(1, round(steps * self._method.interval / self._method.epochs))

    def after_step(self, step: int) -> None:
        self.fresh = False
        if (step + 1) % self._every == 0 or step + 1 == self._steps:
            self.project(self._model)

    @torch.no_grad()
    def project(self, model: nn.Module) -> None:
        """Project every layer, in place."""
        self.fresh = True
        for name, rank in self._ranks.items():
            weight = cast(Tensor, model.get_submodule(name).weight)
            matrix_NM = weight.flatten(1)
            norm = self._behind.get(name)
            scale_N = None if norm is None else scales(model.get_submodule(norm))
            weight.copy_(projected(matrix_NM, rank, scale_N, transfer=self._method.transfer).view_as(weight))


def scales(norm: Any) -> Tensor:
    """Return (N,) what a batch norm multiplies its inputs with in eval mode."""
    ones_N = torch.ones_like(norm.running_var)
    gamma_N: Tensor = ones_N if norm.weight is None else norm.weight.detach()
    scaled_N: Tensor = gamma_N / (norm.running_var + norm.eps).sqrt()
    return scaled_N


def projected(matrix_NM: Tensor, rank: int, scale_N: Tensor | None = None, *, transfer: bool = True) -> Tensor:
    """Return the matrix of that rank at most, in the space scaled by `scale_N`, of the same energy there.

    Float32 at least. A matrix next to zero is returned as it is. Raises TrialFailed when an entry is NaN or infinite.
    """
    precise_NM = matrix_NM.to(torch.promote_types(matrix_NM.dtype, torch.float32))
    check_finite(precise_NM)
    scaled_NM = precise_NM if scale_N is None else scale_N.to(precise_NM.dtype)[:, None] * precise_NM
    U_NK, S_K, V_KM = torch.linalg.svd(scaled_NM, full_matrices=False)
    if float(S_K[0]) < _LEAST:
        return precise_NM
    energy = S_K.square()
    c = (energy.sum() / energy[:rank].sum()).sqrt() if transfer else S_K.new_ones(())
    low_NM: Tensor = (U_NK[:, :rank] * (c * S_K[:rank])) @ V_KM[:rank]
    if scale_N is None:
        return low_NM
    a_N = scale_N.to(precise_NM.dtype)
    return (a_N / (a_N.square() + _DAMPING))[:, None] * low_NM
