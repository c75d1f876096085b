"""Gradients of gates: how the loss of each mini-batch answers to scaling a unit where it is read."""

from __future__ import annotations

import copy
from collections import defaultdict

import torch
from torch import Tensor, nn

from autoprune.data.split import isolated_random_state
from autoprune.errors import LossNotFinite
from autoprune.evidence.kinds import BATCH_ORDER_SEED, Gathered, Source
from autoprune.graph import Place, Role, Structure
from autoprune.tasks import forward


def gate_gradients(model: nn.Module, structure: Structure, source: Source) -> Gathered:
    """Gather dL/dg in training mode, on a copy, so that running statistics of the model stay as they are."""
    probe = copy.deepcopy(model).to(source.device).train()
    parameters = dict(probe.named_parameters(remove_duplicate=False))
    readers = {g.name: g.places_with(Role.INPUT) for g in structure.groups}
    axes = sorted({(p.tensor, p.axis) for places in readers.values() for p in places})
    rows: dict[str, list[Tensor]] = defaultdict(list)
    with isolated_random_state(BATCH_ORDER_SEED):
        for inputs, targets in source.draw():
            probe.zero_grad(set_to_none=True)
            loss = source.task.loss(forward(probe, inputs), targets)
            if not bool(torch.isfinite(loss)):
                raise LossNotFinite(f"the base model's loss on a training batch is {float(loss)}")
            loss.backward()  # type: ignore[no-untyped-call]
            product = {(t, a): _weight_times_gradient(parameters[t], a) for t, a in axes}
            for name, places in readers.items():
                parts = [_per_unit(product[p.tensor, p.axis], p) for p in places]
                if parts:
                    rows[name].append(torch.stack(parts).sum(dim=0))
    return {name: torch.stack(batches) for name, batches in rows.items()}


def _weight_times_gradient(parameter: Tensor, axis: int) -> Tensor:
    if parameter.grad is None:
        return torch.zeros(parameter.shape[axis], dtype=torch.float64, device=parameter.device)
    others = [a for a in range(parameter.ndim) if a != axis]
    product = parameter.detach().double() * parameter.grad.double()
    return product.sum(dim=others) if others else product


def _per_unit(values: Tensor, place: Place) -> Tensor:
    indices_CM = torch.tensor(place.indices, device=values.device)
    return values[indices_CM].sum(dim=1)
