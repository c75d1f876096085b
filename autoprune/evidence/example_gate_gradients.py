"""Gradients of gates for every sample alone: how its loss answers to scaling a unit where it is read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad

from autoprune.errors import LossNotFinite
from autoprune.evidence.derivatives import differentiable
from autoprune.evidence.gates import GatedModel
from autoprune.evidence.kinds import Gathered, Source
from autoprune.graph import Role, Structure


def example_gate_gradients(model: nn.Module, structure: Structure, source: Source) -> Gathered:
    """Gather dL_n/dg (N, C) of every group, in eval mode: with batch statistics the samples would mix.

    A gate at the readers sees activation times gradient, summed over positions: sum_hw z * dL_n/dz.
    """
    gated = GatedModel(model, structure, source.device, Role.INPUT)

    def of_one(inputs: Any, targets: Any) -> Tensor:
        found: Tensor = grad(lambda gates_U: source.task.loss(gated(gates_U, inputs), targets))(gated.ones())
        return found

    with differentiable():
        gradient_NU = torch.cat([gated.per_sample(of_one, *batch) for batch in source.draw()]).detach()
    if not bool(torch.isfinite(gradient_NU).all()):
        raise LossNotFinite("the gradient of the base model's loss on a training sample is not finite")
    return {name: rows.contiguous() for name, rows in gated.by_group(gradient_NU).items()}
