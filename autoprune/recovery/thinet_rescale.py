"""One least-squares factor per kept unit. Luo et al., "ThiNet", ICCV 2017, arXiv 1707.06342, equations 7 and 8.

Rows of X (R, C): what each unit adds to a sampled output of a layer that reads it, y = X 1; S the units that stay.

    w_S = argmin ||y - X_S w||^2 = (X_S^T X_S)^-1 X_S^T y,    W[:, inputs of unit s] <- w_s W[:, inputs of unit s]

Each reader and each group that it reads has its own factors; biases stay. Units that add nothing keep a factor of one.
Departs from the paper: a tiny ridge (1e-8 of the mean diagonal), since its inversion fails on units that repeat
others; the batch norm behind is estimated anew by `bn_reestimation` and not left stale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from autoprune.errors import BadRecipe
from autoprune.evidence import Evidence
from autoprune.graph import Place
from autoprune.recovery._base import Cut, Recovery, RecoveryContext, RecoveryCost

_RIDGE = 1e-8
_LEAST = 1e-12


@dataclass(frozen=True, kw_only=True)
class ThinetRescale(Recovery):
    """Scale what the kept units add to the next layer so that its outputs change least."""

    trains: ClassVar[bool] = False
    follows_cut: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({Evidence.NEXT_LAYER})

    def recover(self, model: nn.Module, context: RecoveryContext, epochs: float) -> RecoveryCost:
        """Raises BadRecipe when it is used without a cut."""
        if context.cut is None:
            raise BadRecipe("thinet_rescale corrects a model that was just cut; it cannot run on its own")
        for group in context.cut.structure.groups:
            grams = context.cut.evidence.next_layer(group)
            for place in group.consumers:
                if place.tensor in grams:
                    _rescale(model, place, grams[place.tensor], context.cut)
        model.eval()
        return RecoveryCost()


def _rescale(model: nn.Module, place: Place, gram_CC: Tensor, cut: Cut) -> None:
    stays = np.asarray(cut.selection.kept.get(place.tensor, {}).get(place.axis, ()), dtype=np.int64)
    stays_CM = np.isin(place.indices, stays)  # of a unit some inputs may be gone with units of another group
    kept_S = np.flatnonzero(stays_CM.any(axis=1))
    if len(kept_S) in (0, len(place.indices)):
        return
    weight = model.get_parameter(place.tensor)
    factor_S = factors(gram_CC, torch.tensor(kept_S, device=gram_CC.device)).to(weight.device)
    scale_I = torch.ones(weight.shape[place.axis], dtype=torch.float64, device=weight.device)
    for unit, factor in zip(kept_S, factor_S, strict=True):
        now = np.searchsorted(stays, place.indices[unit][stays_CM[unit]])
        scale_I[torch.tensor(now, device=weight.device)] = factor
    shape = [-1 if axis == place.axis else 1 for axis in range(weight.dim())]
    with torch.no_grad():
        weight.mul_(scale_I.reshape(shape).to(weight.dtype))


def factors(gram_CC: Tensor, kept_S: Tensor) -> Tensor:
    """Return w (S,), float64, from G = X^T X (C, C): the solution of G[S, S] w = (G 1)[S]."""
    inner_SS, wanted_S = gram_CC[kept_S][:, kept_S], gram_CC.sum(dim=1)[kept_S]
    level = inner_SS.diagonal().mean()
    if not float(level) > 0:
        return torch.ones_like(wanted_S)
    ridge_SS = _RIDGE * level * torch.eye(len(kept_S), dtype=inner_SS.dtype, device=inner_SS.device)
    solved_S: Tensor = torch.linalg.solve(inner_SS + ridge_SS, wanted_S)
    return torch.where(inner_SS.diagonal() > _LEAST * level, solved_S, torch.ones_like(solved_S))
