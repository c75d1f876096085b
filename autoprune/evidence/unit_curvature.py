"""How the loss answers to all units' weights together: gradients, Hessian products and the Gauss-Newton matrix.

theta_s are the weights and biases that produce unit s. With a gate on each unit, theta_s . dL/dtheta_s and
theta_s . H . theta_t are the gradient and the Hessian by the gates.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, jacrev

from autoprune.errors import LossNotFinite, NotApplicable
from autoprune.evidence.derivatives import differentiable
from autoprune.evidence.gates import GatedModel
from autoprune.evidence.kinds import Gathered, Source
from autoprune.graph import Role, Structure
from autoprune.tasks import Task, batch_length, logits_of

PRODUCERS = (Role.OUTPUT, Role.DEPTHWISE, Role.BIAS)
NORMS = (Role.NORM_WEIGHT, Role.NORM_BIAS)
SAMPLES = 256
"""Samples that the Gauss-Newton matrix is taken on, at most: each costs one backward pass for every output."""
MOST_UNITS = 8192
"""Models with more units are refused: the matrix alone would take over 512 MB."""


def unit_curvature(model: nn.Module, structure: Structure, source: Source) -> Gathered:
    """Gather theta_s . g and theta_s . H . sum_t theta_t, (2, C) of every group, in eval mode.

    `<group>` holds weights and biases alone, `<group>+norms` also the scale and shift of the norms.
    """
    found: dict[str, Tensor] = {}
    for suffix, roles in (("", PRODUCERS), ("+norms", PRODUCERS + NORMS)):
        gated = GatedModel(model, structure, source.device, *roles)
        with differentiable():
            both_2U = all_units_product(gated, source.task, source.draw())
        found |= {f"{name}{suffix}": part.contiguous() for name, part in gated.by_group(both_2U).items()}
    return found


def all_units_product(gated: GatedModel, task: Task, batches: Iterable[Any]) -> Tensor:
    """Return gradient and Hessian times ones by the gates, (2, U): two gradients a batch for any number of units."""
    total_2U, samples = torch.stack([torch.zeros_like(gated.ones())] * 2), 0
    for inputs, targets in batches:
        size = batch_length(targets)
        gates_U = gated.ones().requires_grad_()
        loss = task.loss(gated(gates_U, inputs), targets)
        (gradient_U,) = torch.autograd.grad(loss, gates_U, create_graph=True)
        product_U = torch.zeros_like(gates_U)
        if gradient_U.requires_grad:
            (product_U,) = torch.autograd.grad(gradient_U, gates_U, grad_outputs=torch.ones_like(gates_U))
        total_2U = total_2U + size * torch.stack([gradient_U.detach(), product_U])
        samples += size
    return _finite(total_2U / samples)


def gauss_newton(model: nn.Module, structure: Structure, source: Source) -> Gathered:
    """Gather `gradient` (U,) theta_s . g and `matrix` (U, U) theta_s . R . theta_t, R the Gauss-Newton Hessian.

    Eval mode. Raises NotApplicable for too many units.
    """
    units = int(structure.sizes.sum())
    if units > MOST_UNITS:
        raise NotApplicable(f"the Gauss-Newton matrix of {units} units is too large; at most {MOST_UNITS}")
    gated = GatedModel(model, structure, source.device, *PRODUCERS)
    batches = itertools.islice(source.draw(), max(1, SAMPLES // source.batch_size))
    with differentiable():
        gradient_U, matrix_UU = gauss_newton_of(gated, source.task, batches)
    return {"gradient": _finite(gradient_U), "matrix": _finite(matrix_UU)}


def gauss_newton_of(gated: GatedModel, task: Task, batches: Iterable[Any]) -> tuple[Tensor, Tensor]:
    """Return mean over samples of J^T dl/df (U,) and J^T R J (U, U); J (D, U) by the gates, R the Hessian in f."""

    def of_one(inputs: Any, targets: Any) -> Tensor:
        def outputs(gates_U: Tensor) -> tuple[Tensor, Tensor]:
            f_1D = logits_of(gated(gates_U, inputs))
            return f_1D, f_1D

        jacobian, f_1D = jacrev(outputs, has_aux=True)(gated.ones())
        slope = grad(task.loss)(f_1D, targets).reshape(-1, 1)
        curvature = jacrev(grad(task.loss))(f_1D, targets).reshape(len(slope), len(slope))
        parts = (jacobian.reshape(len(slope), -1), slope, curvature)
        return torch.cat([p.double() for p in parts], dim=1)

    units, samples = len(gated.ones()), 0
    gradient_U = torch.zeros_like(gated.ones())
    matrix_UU = gradient_U.new_zeros(units, units)
    for inputs, targets in batches:
        outputs = _count_outputs(gated, inputs) // batch_length(targets)
        rows = gated.per_sample(of_one, inputs, targets, width=outputs).detach()
        jacobian_NDU, slope_ND1, curvature_NDD = torch.split(rows, [units, 1, outputs], dim=2)
        gradient_U += (jacobian_NDU * slope_ND1).sum(dim=(0, 1))
        curved_NDU = curvature_NDD @ jacobian_NDU
        matrix_UU += jacobian_NDU.flatten(0, 1).T @ curved_NDU.flatten(0, 1)
        samples += len(rows)
    return gradient_U / samples, (matrix_UU + matrix_UU.T) / (2 * samples)


def _count_outputs(gated: GatedModel, inputs: Any) -> int:
    with torch.no_grad():
        return logits_of(gated(gated.ones(), inputs)).numel()


def _finite(values: Tensor) -> Tensor:
    if not bool(torch.isfinite(values).all()):
        raise LossNotFinite("the curvature of the base model's loss on training batches is not finite")
    return values
