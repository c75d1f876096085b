"""What removing a unit changes to second order, and the curvature on the side of each layer's outputs.

A gate z_j of one on unit j, where it is read, has for every sample n the derivative h_nj = d loss_n / d z_j. Removing
the unit changes the mean loss by about

    change_j = - mean_n(h_nj) + 1/2 mean_n(h'_nj ** 2)

h by the true labels, h' by labels drawn from the model's own output, whose squares make the Gauss-Newton term. By the
same backward pass G (N, N), as `autoprune.curvature` has it, of every layer.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from autoprune.curvature import Calls, fisher_losses, has_factors, output_rows, watched
from autoprune.errors import LossNotFinite
from autoprune.evidence.derivatives import differentiable
from autoprune.evidence.kinds import BATCH_ORDER_SEED, Gathered, Source
from autoprune.graph import Group, Role, Structure
from autoprune.seeds import derive_seed
from autoprune.tasks import batch_length, forward

LOSS = "loss"


def kronecker(model: nn.Module, structure: Structure, source: Source) -> Gathered:
    """Gather `loss` (), `<layer>.outputs` (N, N) and `<group>.change` (C,), float64, in eval mode on a copy.

    Layers without factors, and groups that something else than a convolution or linear layer reads, have no entry.
    """
    probe = copy.deepcopy(model).to(source.device).eval().requires_grad_(True)
    layers = {name: m for name, m in probe.named_modules() if isinstance(m, nn.Linear | _ConvNd)}
    readers = {g.name: _readers(g, layers) for g in structure.groups}
    draws = torch.Generator().manual_seed(derive_seed(BATCH_ORDER_SEED, "kronecker"))
    first: dict[str, Tensor] = {}
    second: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    loss, samples = torch.zeros((), dtype=torch.float64), 0
    with differentiable():
        for inputs, targets in source.draw():
            with watched(layers) as seen:
                output = forward(probe, inputs)
            size = batch_length(targets)
            value = source.task.loss(output, targets) * size
            (drawn,) = fisher_losses(output, targets, source.task, "sampled", draws)
            true_h = _gates(layers, seen, value)
            drawn_h = _gates(layers, seen, drawn)
            for name, places in readers.items():
                if all(layer in true_h for layer, _ in places) and places:
                    _add(first, name, _of_units(true_h, places).sum(dim=0))
                    _add(second, name, _of_units(drawn_h, places).square().sum(dim=0))
            for name, calls in seen.items():
                if not has_factors(layers[name]):
                    continue
                gradients = torch.autograd.grad(drawn, [s for _, s in calls], retain_graph=True, materialize_grads=True)
                rows = torch.cat([output_rows(layers[name], g) for g in gradients]).double()
                _add(outputs, f"{name}.outputs", rows.T @ rows * (size / len(rows)))
            loss, samples = loss + value.detach().double().cpu(), samples + size
    found = {f"{name}.change": (second[name] / 2 - first[name]) / samples for name in first}
    found |= {name: total / samples for name, total in outputs.items()} | {LOSS: loss / samples}
    if not all(bool(torch.isfinite(v).all()) for v in found.values()):
        raise LossNotFinite("the curvature of the model's loss on training batches is not finite")
    return found


Reader = tuple[str, Tensor]
"""A layer, and the indices (C, M) of what it reads of each unit."""


def _readers(group: Group, layers: Mapping[str, nn.Module]) -> list[Reader]:
    places = [(p.module, torch.tensor(p.indices)) for p in group.places_with(Role.INPUT)]
    return places if all(name in layers for name, _ in places) else []


def _gates(layers: Mapping[str, Any], seen: Mapping[str, Calls], loss: Tensor) -> dict[str, Tensor]:
    """Return by layer (samples, inputs of its weight): x * d loss / d x, summed over positions and calls."""
    reads = [(name, x) for name, calls in seen.items() for x, _ in calls if x.requires_grad]
    gradients = torch.autograd.grad(loss, [x for _, x in reads], retain_graph=True, materialize_grads=True)
    found: dict[str, Tensor] = {}
    for (name, x), gradient in zip(reads, gradients, strict=True):
        layer, product = layers[name], (x.detach() * gradient).double()
        if isinstance(layer, nn.Linear):
            _add(found, name, product.reshape(len(product), -1, product.shape[-1]).sum(dim=1))
        else:
            groups = 1 if isinstance(layer, _ConvTransposeNd) else layer.groups
            _add(found, name, product.flatten(2).sum(dim=2).reshape(len(product), groups, -1).sum(dim=1))
    return found


def _of_units(gates: Mapping[str, Tensor], readers: Sequence[Reader]) -> Tensor:
    """Return (samples, C): the derivatives by gates on the units."""
    return torch.stack([gates[name][:, indices].sum(dim=2) for name, indices in readers]).sum(dim=0)


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value
