"""Second derivatives of the loss by gates, exact: how the loss answers to removing one unit, to second order."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.errors import LossNotFinite
from autoprune.evidence.derivatives import differentiable
from autoprune.evidence.gates import GatedModel
from autoprune.evidence.kinds import Gathered, Source
from autoprune.graph import Role, Structure
from autoprune.tasks import Task

BATCHES = 2
"""Mini-batches looked at, at most: each costs one backward pass for every unit of the model."""


def gate_curvature(model: nn.Module, structure: Structure, source: Source) -> Gathered:
    """Gather dL/dg and d2L/dg2 (2, B, C) of every group, the gates where units are read, in training mode."""
    gated = GatedModel(model, structure, source.device, Role.INPUT).train()
    rows: list[Tensor] = []
    with differentiable():
        for inputs, targets in itertools.islice(source.draw(), BATCHES):
            rows.append(_one_batch(gated, source.task, inputs, targets))
    found_2BU = torch.stack(rows, dim=1)
    if not bool(torch.isfinite(found_2BU).all()):
        raise LossNotFinite("the second derivative of the base model's loss on a training batch is not finite")
    return {name: part.contiguous() for name, part in gated.by_group(found_2BU).items()}


def _one_batch(gated: GatedModel, task: Task, inputs: Any, targets: Any) -> Tensor:
    gates_U = gated.ones().requires_grad_()
    loss = task.loss(gated(gates_U, inputs), targets)
    (gradient_U,) = torch.autograd.grad(loss, gates_U, create_graph=True)
    diagonal_U = torch.zeros_like(gates_U)
    for unit in range(len(gates_U)) if gradient_U.requires_grad else ():
        (row_U,) = torch.autograd.grad(gradient_U[unit], gates_U, retain_graph=True)
        diagonal_U[unit] = row_U[unit]
    return torch.stack([gradient_U.detach(), diagonal_U])
