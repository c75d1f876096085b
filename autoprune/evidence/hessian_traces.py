"""Curvature of the loss in the weights of every output channel: traces of the Hessian's diagonal blocks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.errors import LossNotFinite
from autoprune.evidence.derivatives import differentiable
from autoprune.evidence.kinds import BATCH_ORDER_SEED, Gathered, Source
from autoprune.graph import Role, Structure
from autoprune.seeds import derive_seed
from autoprune.tasks import batch_length, forward

PROBES = 32
"""Random sign vectors; each costs a double backward pass over all samples."""

Signs = Callable[[int], Mapping[str, Tensor]]
"""Probe number to one tensor of +1 and -1 per weight; asked again for every batch, so always the same."""


def hessian_traces(model: nn.Module, structure: Structure, source: Source) -> Gathered:
    """Gather, for every weight that produces units, the trace of the Hessian's block of each of its rows, (O,).

    Eval mode. Hutchinson: E[v . H v] over random signs v is the trace; one product serves all rows of all weights.
    """
    probe = copy.deepcopy(model).to(source.device).eval().requires_grad_(False)
    axes = {p.tensor: p.axis for p in structure.axes if p.role in (Role.OUTPUT, Role.DEPTHWISE)}
    weights = {name: w for name, w in probe.named_parameters(remove_duplicate=False) if name in axes}

    def signs(number: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(derive_seed(BATCH_ORDER_SEED, "probe", number))
        return {name: (torch.randint(0, 2, w.shape, generator=generator) * 2 - 1).to(w) for name, w in weights.items()}

    def loss(inputs: Any, targets: Any) -> Tensor:
        return source.task.loss(forward(probe, inputs), targets)

    with differentiable():
        return row_traces(weights, axes, loss, source.draw(), signs, PROBES)


def row_traces(
    weights: Mapping[str, Tensor],
    axes: Mapping[str, int],
    loss: Callable[[Any, Any], Tensor],
    batches: Iterable[tuple[Any, Any]],
    signs: Signs,
    probes: int,
) -> dict[str, Tensor]:
    """Return mean over probes v of <v_row, (H v)_row> for every row of every weight along its axis, float64.

    loss: mean over the samples of a batch; batches count by their size. The weights are made differentiable.
    """
    names = list(weights)
    for name in names:
        weights[name].requires_grad_()
    sums = {n: torch.zeros(weights[n].shape[axes[n]], dtype=torch.float64, device=weights[n].device) for n in names}
    samples = 0
    for inputs, targets in batches:
        size = batch_length(targets)
        samples += size
        gradients = torch.autograd.grad(
            loss(inputs, targets), [weights[n] for n in names], create_graph=True, materialize_grads=True
        )
        for number in range(probes):
            _add_probe(sums, weights, axes, gradients, signs(number), size, last=number + 1 == probes)
    traces = {name: total / (samples * probes) for name, total in sums.items()}
    if not all(bool(torch.isfinite(t).all()) for t in traces.values()):
        raise LossNotFinite("the curvature of the base model's loss on training batches is not finite")
    return traces


def _add_probe(
    sums: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    axes: Mapping[str, int],
    gradients: tuple[Tensor, ...],
    signs: Mapping[str, Tensor],
    size: int,
    *,
    last: bool,
) -> None:
    names = [n for n, g in zip(weights, gradients, strict=True) if g.requires_grad]
    if not names:  # the loss is linear in the weights
        return
    products = torch.autograd.grad(
        [g for g in gradients if g.requires_grad],
        list(weights.values()),
        grad_outputs=[signs[n] for n in names],
        retain_graph=not last,
        materialize_grads=True,
    )
    for name, product in zip(weights, products, strict=True):
        by_row = (signs[name].double() * product.double()).movedim(axes[name], 0).flatten(1).sum(dim=1)
        sums[name].add_(by_row, alpha=size)
