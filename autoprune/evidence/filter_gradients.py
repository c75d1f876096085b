"""Gradients of filters, sample by sample: how the loss of every sample pulls at each unit's producing weights.

With Gamma_n (C, d) the gradient of sample n's loss by the weights (and bias, the last of the d entries) that produce
the units, kept for every group: K = (1 / N) sum_n Gamma_n Gamma_n^T (C, C), float64, added up over all producers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from autoprune.errors import LossNotFinite
from autoprune.evidence.input_moments import rows_of
from autoprune.evidence.kinds import Gathered, Source
from autoprune.graph import Place, Role, Structure
from autoprune.tasks import batch_length, forward

_MOST_VALUES = 2**25
"""Values of Gamma that are held at once."""
Calls = list[tuple[Tensor, Tensor]]


def filter_gradients(model: nn.Module, structure: Structure, source: Source) -> Gathered:
    """Gather K (C, C) by group, in eval mode, so that samples do not depend on each other.

    Groups with a producer other than a linear layer or a one- or two-dimensional convolution are left out.
    """
    probe = copy.deepcopy(model).to(source.device).eval().requires_grad_(True)
    places = {g.name: g.places_with(Role.OUTPUT, Role.DEPTHWISE) for g in structure.groups}
    places = {name: found for name, found in places.items() if all(_known(probe, p, structure) for p in found)}
    modules = {p.module for found in places.values() for p in found}
    sums: dict[str, Tensor] = {}
    count = 0
    for inputs, targets in source.draw():
        calls: dict[str, Calls] = {name: [] for name in modules}
        probe.zero_grad(set_to_none=True)
        with _hooked(probe, calls):
            loss = source.task.loss(forward(probe, inputs), targets)
            if not bool(torch.isfinite(loss)):
                raise LossNotFinite(f"the base model's loss on a training batch is {float(loss)}")
            samples = batch_length(targets)
            (loss * samples).backward()  # type: ignore[no-untyped-call]
        count += samples
        for name, found in places.items():
            for place in found:
                gram_CC = _gram(probe.get_submodule(place.module), calls[place.module], place)
                sums[name] = sums[name] + gram_CC if name in sums else gram_CC
    return {name: total / count for name, total in sums.items()}


def _known(model: nn.Module, place: Place, structure: Structure) -> bool:
    module = model.get_submodule(place.module)
    plain = isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and place.axis == 0
    zeros = getattr(module, "padding_mode", "zeros") == "zeros"
    return plain and zeros and any(layer.weight == place.tensor for layer in structure.layers)


@contextmanager
def _hooked(model: nn.Module, calls: dict[str, Calls]) -> Iterator[None]:
    """Note what every module reads, and the gradient of what it puts out."""
    handles = []
    for name, found in calls.items():

        def hook(module: nn.Module, arguments: tuple[Any, ...], output: Tensor, found: Calls = found) -> None:
            read = arguments[0].detach()
            output.register_hook(lambda gradient: found.append((read, gradient)))  # type: ignore[no-untyped-call]

        handles.append(model.get_submodule(name).register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _gram(module: nn.Module, calls: Calls, place: Place) -> Tensor:
    """Return the sum over samples of Gamma_n Gamma_n^T (C, C)."""
    indices_CM = torch.tensor(place.indices)
    weight = cast(Tensor, module.weight)
    total = torch.zeros(len(indices_CM), len(indices_CM), dtype=torch.float64, device=weight.device)
    if not calls:
        return total
    if len(calls) == 1 and _by_positions(module, *calls[0], size=len(indices_CM)):
        return _gram_by_positions(module, *calls[0], indices_CM.to(weight.device))
    part = max(1, _MOST_VALUES // weight.numel())
    for start in range(0, len(calls[0][0]), part):
        gamma_NOD = torch.stack(
            [sample_gradients(module, read[start : start + part], out[start : start + part]) for read, out in calls]
        ).sum(dim=0)
        gamma_CK = gamma_NOD.double()[:, indices_CM.to(weight.device)].transpose(0, 1).flatten(1)
        total += gamma_CK @ gamma_CK.T
    return total


def _by_positions(module: nn.Module, read: Tensor, gradient: Tensor, size: int) -> bool:
    """Whether products of positions (T, T) take less than gradients of weights (O, D); of dense layers only."""
    if getattr(module, "groups", 1) != 1:
        return False
    weight = cast(Tensor, module.weight)
    outputs, inputs = weight.shape[0], weight[0].numel()
    positions = gradient.numel() // (len(gradient) * outputs)
    by_positions = positions * (positions * (inputs + outputs) + size * outputs)
    return by_positions < outputs * inputs * (positions + size)


def _gram_by_positions(module: nn.Module, read: Tensor, gradient: Tensor, indices_CM: Tensor) -> Tensor:
    """Return the sum over samples of Gamma_n Gamma_n^T = delta_n (A_n^T A_n) delta_n^T, A_n what the layer reads."""
    size = len(indices_CM)
    total = torch.zeros(size, size, dtype=torch.float64, device=gradient.device)
    for start in range(len(read)):
        delta_1OT, patches_1DT = _delta_and_patches(module, read[start : start + 1], gradient[start : start + 1])
        delta_OT, patches_DT = delta_1OT[0].double(), patches_1DT[0].double()
        products_TT = patches_DT.T @ patches_DT
        if getattr(module, "bias", None) is not None:
            products_TT = products_TT + 1
        left_CK = (delta_OT @ products_TT)[indices_CM].reshape(size, -1)
        total += left_CK @ delta_OT[indices_CM].reshape(size, -1).T
    return total


def _delta_and_patches(module: nn.Module, read: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return (N, O, T), the gradient at every position, and (N, D, T), what the layer read there."""
    samples = len(read)
    if isinstance(module, nn.Linear):
        delta_NOT = gradient.reshape(samples, -1, gradient.shape[-1]).transpose(1, 2)
        return delta_NOT, read.reshape(samples, -1, read.shape[-1]).transpose(1, 2)
    return gradient.flatten(2), _patches(cast("nn.Conv1d | nn.Conv2d", module), read)


def sample_gradients(module: nn.Module, read: Tensor, gradient: Tensor) -> Tensor:
    """Return (N, O, d): each sample's gradient by every output's weights, and its bias where there is one."""
    delta_NOT, patches_NDT = _delta_and_patches(module, read, gradient)
    groups = int(getattr(module, "groups", 1))
    parts = [
        delta @ patches.transpose(1, 2)
        for delta, patches in zip(
            delta_NOT.tensor_split(groups, dim=1), patches_NDT.tensor_split(groups, dim=1), strict=True
        )
    ]
    found_NOD = torch.cat(parts, dim=1)
    if getattr(module, "bias", None) is None:
        return found_NOD
    return torch.cat([found_NOD, delta_NOT.sum(dim=2, keepdim=True)], dim=2)


def _patches(conv: nn.Conv1d | nn.Conv2d, read: Tensor) -> Tensor:
    """(N, D, T): what stands under the kernel at every position, channel by channel."""
    if isinstance(conv, nn.Conv1d):
        padded = F.pad(read, conv._reversed_padding_repeated_twice)[:, :, None]
        return F.unfold(padded, (1, conv.kernel_size[0]), (1, conv.dilation[0]), 0, (1, conv.stride[0]))
    rows_RD = rows_of(conv, read)
    return rows_RD.reshape(len(read), -1, rows_RD.shape[1]).transpose(1, 2)


def spectrum(gram_CC: Tensor) -> Tensor:
    """Return the eigenvalues (C,), largest first, none below zero."""
    values: Tensor = torch.linalg.eigvalsh(gram_CC)
    return values.clamp_min(0).flip(0)


def redundancy(values_C: Tensor, eps: float) -> int:
    """Return r: how many of the smallest dimensions together hold at most eps of the sum; never all of them."""
    return int((needed_eps(values_C)[:-1] <= eps).sum())


def needed_eps(values_C: Tensor) -> NDArray[np.float64]:
    """Return (C,): the eps that allows m removals, m = 1 .. C; zero where nothing would be lost. The last is 1."""
    tails_C = values_C.flip(0).cumsum(0)
    total = float(tails_C[-1])
    needed: NDArray[np.float64] = (tails_C / total).numpy() if total > 0 else np.zeros(len(tails_C))
    needed[-1] = 1.0
    return needed
