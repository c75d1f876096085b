"""Sparsity training of batch-norm scales. Liu et al., ICCV 2017, arXiv 1708.06519.

    loss + strength * sum over units of |gamma|,    by adding strength * sign(gamma), sign(0) = 0, to the gradient

gamma are the scales of the norms that units pass, each unit's own. The sum is neither divided by the width nor by the
batch; weight decay acts on the scales too, and the momentum sees the penalty. Only norms of units that can be cut are
penalised; by default not those of residual streams, which several layers write.

The paper trains from random weights with scales of 0.5 and shifts of 0; `initial_scale: kept` goes on from those of the
base model. Cut afterwards by `bn_scale`, unnormalised, under one global ranking. A second cut is trained for anew,
which is the paper's multi-pass scheme.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autoprune.errors import BadRecipe
from autoprune.fields import choice, real
from autoprune.graph import Role, Structure
from autoprune.regularisers._base import Regulariser, RegulariserContext, Shaped
from autoprune.regularisers._training import train_in
from autoprune.training import StepHook, samples_of
from autoprune.training_settings import TrainingSettings

KEPT = "kept"


@dataclass(frozen=True, kw_only=True)
class NetworkSlimming(TrainingSettings, Regulariser):
    """Drive the scales of batch norms to zero where the task allows it."""

    strength: float = real(1e-4, valid=(0.0, 1.0), search=(1e-6, 1e-2), log=True, help="weight of the L1 norm")
    epochs: float = real(1.0, valid=(0.0, 10000.0), search=(0.25, 4.0), log=True, help="epochs before each cut")
    streams: bool = choice(False, options=(False, True), help="penalise the norms of residual streams too")
    initial_scale: str | float = choice(
        KEPT,
        options=(KEPT, 0.5, 1.0),
        search=(KEPT,),
        help="scale that the norms start from, their shift then being 0, or that of the model as it is",
    )

    def shape(self, model: nn.Module, context: RegulariserContext) -> Shaped:
        scales = _of_norms(model.to(context.device), context.structure, Role.NORM_WEIGHT, streams=self.streams)
        if not scales:
            raise BadRecipe(
                "network_slimming penalises the scales of norms, and no unit of this model that can be cut passes one"
                f"{'' if self.streams else '; streams: true counts those of residual streams too'}"
            )
        if context.first and self.initial_scale != KEPT:
            shifts = _of_norms(model, context.structure, Role.NORM_BIAS, streams=self.streams)
            _set(scales, float(self.initial_scale))
            _set(shifts, 0.0)
        if self.epochs == 0:
            model.eval()
            return Shaped(trained_samples=0)
        samples, hook = samples_of(self.epochs, context.data.train), _Signs(scales, self.strength)
        trained = train_in(context, model, self, samples, hook=hook, decay_all=True)
        return Shaped(trained_samples=trained)


Entries = list[tuple[nn.Parameter, Tensor]]
"""Parameters of norms, (n,) each, with a mask (n,) of ones at the entries of units that can be cut."""


def _of_norms(model: nn.Module, structure: Structure, role: Role, *, streams: bool) -> Entries:
    found: dict[str, tuple[nn.Parameter, Tensor]] = {}
    for group in structure.groups:
        for place in group.places_with(role) if streams or not group.is_stream else ():
            parameter = model.get_parameter(place.tensor)
            _, mask_n = found.setdefault(place.tensor, (parameter, torch.zeros_like(parameter)))
            mask_n[torch.from_numpy(place.indices.flatten())] = 1.0
    return list(found.values())


def _set(entries: Entries, value: float) -> None:
    with torch.no_grad():
        for parameter, mask_n in entries:
            parameter.copy_(torch.where(mask_n > 0, value, parameter))


class _Signs(StepHook):
    """Adds the penalty's gradient."""

    def __init__(self, scales: Entries, strength: float) -> None:
        self._scales, self._strength = scales, strength

    def before_step(self, step: int) -> bool:
        for parameter, mask_n in self._scales:
            if not parameter.requires_grad:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.add_(parameter.detach().sign() * mask_n, alpha=self._strength)
        return False
