"""What each unit contributes to outputs of the layers that read it, at randomly sampled outputs.

A row is one sample, one output feature o of the reading layer and one output position p. With W the layer's weight and
A what it reads, zero padding included,

    x_C[c] = sum over the inputs i of unit c and the kernel taps t of W[o, i, t] * A[i, p at t]

so that the sum of all x is the output without its bias, exactly. Kept for every group and reader: E[x x^T] (C, C).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoprune.data.split import isolated_random_state
from autoprune.evidence.kinds import BATCH_ORDER_SEED, Gathered, Source
from autoprune.graph import Layer, Place, Role, Structure
from autoprune.tasks import forward

ROWS_PER_IMAGE = 10
"""Luo et al. 2017 sample ten places of each image."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Sampled outputs of one call of a layer, each (R,): image, output feature, and position, flattened."""

    image: Tensor
    output: Tensor
    position: Tensor


def next_layer(model: nn.Module, structure: Structure, source: Source) -> Gathered:
    """Gather `<group>|<weight>` (C, C), float64, of every group and reader, in eval mode."""
    probe = copy.deepcopy(model).to(source.device).eval()
    layers = {layer.weight: layer for layer in structure.layers}
    readers: dict[str, list[tuple[str, Place]]] = {}
    for group in structure.groups:
        for place in group.places_with(Role.INPUT):
            if place.tensor in layers and has_terms(probe, layers[place.tensor]):
                readers.setdefault(place.tensor, []).append((group.name, place))
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    draws = torch.Generator().manual_seed(BATCH_ORDER_SEED)

    def add(module: nn.Module, inputs: Tensor, weight: str) -> None:
        terms_RI = terms(module, inputs, sample(module, inputs, draws))
        for name, place in readers[weight]:
            indices = torch.tensor(place.indices, device=terms_RI.device)
            terms_RC = terms_RI[:, indices].sum(dim=2)
            key = f"{name}|{weight}"
            gram_CC = terms_RC.T @ terms_RC
            sums[key] = sums[key] + gram_CC if key in sums else gram_CC
            counts[key] = counts.get(key, 0) + len(terms_RC)

    hooked = {layers[weight].name: weight for weight in readers}
    with torch.no_grad(), isolated_random_state(BATCH_ORDER_SEED), _hooked(probe, hooked, add):
        for inputs, _ in source.draw():
            forward(probe, inputs)
    return {key: gram / counts[key] for key, gram in sums.items()}


def has_terms(model: nn.Module, layer: Layer) -> bool:
    """Say whether a layer's outputs are sums that can be sampled: linear, or one- or two-dimensional convolution."""
    module = model.get_submodule(layer.name)
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return module.padding_mode == "zeros"
    return isinstance(module, nn.Linear)


def sample(module: nn.Module, inputs: Tensor, draws: torch.Generator) -> Rows:
    """Draw `ROWS_PER_IMAGE` outputs of every image."""
    positions = inputs[0, ..., 0].numel() if isinstance(module, nn.Linear) else _out_size(module, inputs)[2]
    count = len(inputs) * ROWS_PER_IMAGE
    weight = cast(Tensor, module.weight)
    return Rows(
        image=torch.arange(len(inputs)).repeat_interleave(ROWS_PER_IMAGE).to(inputs.device),
        output=torch.randint(weight.shape[0], (count,), generator=draws).to(inputs.device),
        position=torch.randint(positions, (count,), generator=draws).to(inputs.device),
    )


def terms(module: nn.Module, inputs: Tensor, rows: Rows) -> Tensor:
    """Return (R, I): what every index of the weight's input axis adds to the sampled outputs, float64.

    For a grouped convolution these are the inputs of the output's own group.
    """
    weight_RIT = cast(Tensor, module.weight).detach().double()[rows.output]
    if isinstance(module, nn.Linear):
        read_BPI = inputs.double().reshape(len(inputs), -1, inputs.shape[-1])
        return weight_RIT * read_BPI[rows.image, rows.position]
    return (weight_RIT.flatten(2) * _patches(cast(nn.Conv2d, module), inputs, rows)).sum(dim=2)


def _patches(conv: nn.Conv2d, inputs: Tensor, rows: Rows) -> Tensor:
    """(R, I, T): what stands under the kernel, the channels of the output's group only."""
    _, width, _ = _out_size(conv, inputs)
    if inputs.dim() == 3:
        inputs = inputs[:, :, None]
    padded = F.pad(inputs, _around(conv))
    taps = [_taps(n, d, inputs.device) for n, d in zip(_two(conv.kernel_size, 1), _two(conv.dilation, 1), strict=True)]
    down, across = _two(conv.stride, 1)
    y_RT = (rows.position // width * down)[:, None] + taps[0].repeat_interleave(len(taps[1]))
    x_RT = (rows.position % width * across)[:, None] + taps[1].repeat(len(taps[0]))
    inner = conv.in_channels // conv.groups
    first_R = rows.output // (conv.out_channels // conv.groups) * inner
    channel_RI = first_R[:, None] + torch.arange(inner, device=inputs.device)
    image = rows.image[:, None, None]
    return padded[image, channel_RI[:, :, None], y_RT[:, None, :], x_RT[:, None, :]].double()


def _out_size(module: nn.Module, inputs: Tensor) -> tuple[int, int, int]:
    conv = cast(nn.Conv2d, module)
    sizes = (1, *inputs.shape[2:]) if inputs.dim() == 3 else tuple(inputs.shape[2:])
    around = _around(conv)
    padding = (around[2] + around[3], around[0] + around[1])
    parts = (sizes, padding, _two(conv.kernel_size, 1), _two(conv.dilation, 1), _two(conv.stride, 1))
    height, width = (
        (size + pad - dilation * (kernel - 1) - 1) // stride + 1
        for size, pad, kernel, dilation, stride in zip(*parts, strict=True)
    )
    return height, width, height * width


def _around(conv: nn.Conv2d) -> tuple[int, int, int, int]:
    """Padding before and behind the last axis, then the one before it."""
    left, right, *rest = conv._reversed_padding_repeated_twice
    return (left, right, *rest) if rest else (left, right, 0, 0)  # type: ignore[return-value]


def _two(given: tuple[int, ...], fill: int) -> tuple[int, int]:
    return (given[0], given[1]) if len(given) == 2 else (fill, given[0])


def _taps(kernel: int, dilation: int, device: torch.device) -> Tensor:
    return torch.arange(kernel, device=device) * dilation


@contextmanager
def _hooked(model: nn.Module, weights: dict[str, str], add: Any) -> Iterator[None]:
    handles = []
    for name, weight in weights.items():

        def hook(module: nn.Module, arguments: tuple[Any, ...], weight: str = weight) -> None:
            add(module, arguments[0], weight)

        handles.append(model.get_submodule(name).register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
