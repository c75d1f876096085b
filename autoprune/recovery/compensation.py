"""Closed-form weight compensation. Xie et al. 2021, "Pruning with Compensation", arXiv 2108.13728.

A layer with weight W (N, D) reads rows x (D); K are the rows that remain after the cut, S the covariance of x and mu
its mean, both of the model before the cut. The remaining weight that reproduces the layer's old output best is

    W' = W S[:, K] S[K, K]^-1,    b' = b + W mu - W' mu[K]

which minimises E || W x + b - W' x[K] - b' ||^2. Then, with `rescale`, each output regains its old variance:

    a_n = sqrt((W S W^T)_nn / (W' S[K, K] W'^T)_nn),    W'_n <- a_n W'_n

Where a layer has no bias, b' is left to the batch norm behind it, whose mean is estimated after the cut; a layer
without a bias or a normed output uses second moments in place of the covariance, which is its optimum.
Departs from the paper: no layer gains a bias; the ranking and the search that belong to the paper are no part of this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from autoprune.errors import BadRecipe
from autoprune.evidence import Evidence
from autoprune.fields import choice
from autoprune.graph import Layer, Role
from autoprune.recovery._base import Cut, Recovery, RecoveryContext, RecoveryCost

_RIDGES = (0.0, 1e-8, 1e-6, 1e-4, 1e-2)
"""Parts of the mean variance added to the diagonal, one after the other, until the matrix can be factorised."""
_LEAST_VARIANCE = 1e-12


@dataclass(frozen=True, kw_only=True)
class Compensation(Recovery):
    """Correct the layers that lost inputs so that their outputs change least."""

    trains: ClassVar[bool] = False
    follows_cut: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({Evidence.INPUT_MOMENTS})

    rescale: str = choice(
        "bn_only",
        options=("bn_only", "on", "off"),
        search=("bn_only", "off"),
        help="give outputs their old variance: where a batch norm follows, always, never",
    )

    def recover(self, model: nn.Module, context: RecoveryContext, epochs: float) -> RecoveryCost:
        """Raises BadRecipe when it is used without a cut."""
        if context.cut is None:
            raise BadRecipe("compensation corrects a model that was just cut; it cannot run on its own")
        normed = _normed_tensors(context.cut)
        for layer in context.cut.structure.layers:
            if 1 in context.cut.selection.kept.get(layer.weight, {}):
                self._correct(model, layer, context.cut, followed_by_norm=layer.weight in normed)
        model.eval()
        return RecoveryCost()

    def _correct(self, model: nn.Module, layer: Layer, cut: Cut, *, followed_by_norm: bool) -> None:
        moments = cut.evidence.input_moments(layer.name)
        if moments is None:
            return
        module = model.get_submodule(layer.name)
        mean_D, second_DD = moments
        kept = cut.selection.kept[layer.weight]
        before = cut.evidence.weight(layer.weight).double()
        weight_ND = (before[kept[0]] if 0 in kept else before).flatten(1)
        rows_K = _rows(kept[1], weight_ND.shape[1] // before.shape[1]).to(before.device)
        has_bias = getattr(module, "bias", None) is not None
        centred = has_bias or followed_by_norm
        spread_DD = second_DD - torch.outer(mean_D, mean_D) if centred else second_DD
        solved_NK = _least_squares(weight_ND, spread_DD, rows_K)
        if self.rescale == "on" or (self.rescale == "bn_only" and followed_by_norm):
            solved_NK = _rescaled(weight_ND, solved_NK, spread_DD, rows_K)
        weight = cast(nn.Parameter, module.weight)
        with torch.no_grad():
            weight.copy_(solved_NK.reshape(weight.shape))
            if has_bias:
                bias = cast(nn.Parameter, module.bias)
                bias.add_((weight_ND @ mean_D - solved_NK @ mean_D[rows_K]).to(bias.dtype))


def _normed_tensors(cut: Cut) -> frozenset[str]:
    """Return the weights whose outputs go into a normalisation."""
    return frozenset(p.tensor for g in cut.structure.groups if g.places_with(Role.NORM_WEIGHT) for p in g.producers)


def _rows(channels: list[int], positions: int) -> Tensor:
    """Return the rows of the kept input channels; a channel owns `positions` rows in succession."""
    return (torch.tensor(channels)[:, None] * positions + torch.arange(positions)).flatten()


def _least_squares(weight_ND: Tensor, spread_DD: Tensor, rows_K: Tensor) -> Tensor:
    inner_KK = spread_DD[rows_K][:, rows_K]
    mixed_KN = (weight_ND @ spread_DD[:, rows_K]).T
    level = inner_KK.diagonal().mean()
    eye_KK = torch.eye(len(rows_K), dtype=inner_KK.dtype, device=inner_KK.device)
    for ridge in _RIDGES:
        factor, info = torch.linalg.cholesky_ex(inner_KK + ridge * level * eye_KK)
        if int(info) == 0:
            solved_NK = torch.cholesky_solve(mixed_KN, factor).T
            if bool(torch.isfinite(solved_NK).all()):
                return solved_NK
    return weight_ND[:, rows_K]  # inputs without any variance: nothing to correct by


def _rescaled(weight_ND: Tensor, solved_NK: Tensor, spread_DD: Tensor, rows_K: Tensor) -> Tensor:
    before_N = ((weight_ND @ spread_DD) * weight_ND).sum(dim=1)
    after_N = ((solved_NK @ spread_DD[rows_K][:, rows_K]) * solved_NK).sum(dim=1)
    usable_N = (after_N > _LEAST_VARIANCE * before_N) & (before_N > 0)
    ratio_N = torch.where(usable_N, before_N, after_N.new_ones(())) / torch.where(
        usable_N, after_N, after_N.new_ones(())
    )
    return solved_NK * ratio_N.sqrt()[:, None]
