"""First and second moments of what each layer reads: the statistics behind closed-form weight correction.

Rows x (D) are a layer's inputs where one output is computed: for a linear layer the input features, for a convolution
the patch under the kernel, channel by channel, zero padding included. Per layer:

    mean_D = E[x],   second_DD = E[x x^T]   over all samples and positions, float64
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

from autoprune.evidence.kinds import Gathered, Source
from autoprune.graph import Layer, Structure
from autoprune.tasks import forward

WIDEST = 4608
"""Layers with more inputs per output are left out: their second moments alone would take over 170 MB."""


def has_moments(layer: Layer) -> bool:
    """Say whether moments are gathered for a layer: ungrouped, linear or with a two-dimensional kernel."""
    kernel = layer.kernel if layer.kind == "conv" else (1, 1)
    return layer.groups == 1 and len(kernel) == 2 and layer.in_features * kernel[0] * kernel[1] <= WIDEST


def input_moments(model: nn.Module, structure: Structure, source: Source) -> Gathered:
    """Gather `<layer>.mean` (D,) and `<layer>.second` (D, D) of every layer that `has_moments`, in eval mode."""
    probe = copy.deepcopy(model).to(source.device).eval()
    layers = [layer.name for layer in structure.layers if has_moments(layer)]
    sums = {name: _Sums() for name in layers if _has_rows(probe.get_submodule(name))}
    with torch.no_grad(), _hooked(probe, sums):
        for inputs, _ in source.draw():
            forward(probe, inputs)
    found: dict[str, Tensor] = {}
    for name, total in sums.items():
        if total.count:
            found[f"{name}.mean"] = cast(Tensor, total.first) / total.count
            found[f"{name}.second"] = cast(Tensor, total.second) / total.count
    return found


def _has_rows(module: nn.Module) -> bool:
    """Attention modules hold weights of layers, too, but are called with something else."""
    return isinstance(module, nn.Linear | nn.Conv2d) and getattr(module, "padding_mode", "zeros") == "zeros"


@dataclass
class _Sums:
    count: int = 0
    first: Tensor | None = None
    second: Tensor | None = None

    def add(self, rows_ND: Tensor) -> None:
        first, second = rows_ND.sum(dim=0).double(), (rows_ND.T @ rows_ND).double()
        self.count += len(rows_ND)
        self.first = first if self.first is None else self.first + first
        self.second = second if self.second is None else self.second + second


@contextmanager
def _hooked(model: nn.Module, sums: dict[str, _Sums]) -> Iterator[None]:
    handles = []
    for name, total in sums.items():

        def add(module: nn.Module, arguments: tuple[Any, ...], total: _Sums = total) -> None:
            total.add(rows_of(module, arguments[0]))

        handles.append(model.get_submodule(name).register_forward_pre_hook(add))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def rows_of(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return the rows (N, D) that a linear or two-dimensional convolution layer multiplies with its weight."""
    if isinstance(module, nn.Linear):
        return inputs.flatten(0, -2)
    conv = cast(nn.Conv2d, module)
    if isinstance(conv.padding, str):
        padding = conv._reversed_padding_repeated_twice
        inputs, around = F.pad(inputs, padding), 0
    else:
        around = conv.padding  # type: ignore[assignment]
    patches_BDP = F.unfold(inputs, conv.kernel_size, conv.dilation, around, conv.stride)
    return patches_BDP.transpose(1, 2).flatten(0, 1)
