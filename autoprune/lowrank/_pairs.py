"""Two thin layers in the place of one: what they cost and how they are made.

The first layer turns the input channels into R, the second those into the output channels. Every kernel
axis belongs to one of the two, with its stride, padding and dilation, so that at full rank the pair equals
the layer.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from autoprune.errors import NotApplicable
from autoprune.lowrank._matrices import Axes, split_axes

if TYPE_CHECKING:
    from autoprune.graph import Layer

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def is_splittable(layer: Layer) -> bool:
    """Tell whether a layer is one dense matrix, with more than one row and column, in a module of its own.

    The packed projections of attention are no such module, and a transposed convolution is not handled.
    """
    own = layer.kind in ("conv", "linear") and layer.weight == f"{layer.name}.weight"
    return own and layer.groups == 1 and min(layer.in_features, layer.out_features) > 1


def pair_full_rank(layer: Layer, axes: Axes, n_in: int, n_out: int) -> int:
    """Return the largest rank of a layer of these widths, seen as a matrix."""
    kernel_1, kernel_2 = split_axes(layer.kernel, axes, neutral=1)
    return min(n_in * math.prod(kernel_1), n_out * math.prod(kernel_2))


def pair_params(layer: Layer, axes: Axes, n_in: int, n_out: int, rank: int) -> int:
    """Return the number of parameters of the pair, bias included."""
    kernel_1, kernel_2 = split_axes(layer.kernel, axes, neutral=1)
    weights = rank * (n_in * math.prod(kernel_1) + n_out * math.prod(kernel_2))
    return weights + (n_out if layer.bias is not None else 0)


def pair_flops(layer: Layer, axes: Axes, n_in: int, n_out: int, rank: int) -> int:
    """Return 2 x MACs of the pair, summed over all calls.

    Between the two, the axes that the second takes still have their size at the input.
    """
    kernel_1, kernel_2 = split_axes(layer.kernel, axes, neutral=1)
    macs = 0
    for call in layer.calls:
        after = between = math.prod(call.out_positions)
        if layer.kind == "conv":
            sizes = zip(call.in_positions, call.out_positions, axes, strict=True)
            between = math.prod(out_size if taken else in_size for in_size, out_size, taken in sizes)
        macs += rank * (n_in * math.prod(kernel_1) * between + n_out * math.prod(kernel_2) * after)
    return 2 * macs


def kernel_of(module: nn.Module) -> tuple[int, ...]:
    """Return the kernel of a convolution, or () for a linear layer.

    Raises NotApplicable for what cannot be split. Subclasses are among it: they may compute something else
    from their weight (standardised weights, parametrisations).
    """
    if type(module) is nn.Linear:
        return ()
    if type(module) not in _CONVOLUTIONS:
        raise NotApplicable(f"only a plain Linear or Conv1d to Conv3d can be split in two, got {type(module)}")
    if cast(nn.Conv2d, module).groups != 1:
        raise NotApplicable(f"a convolution of {module.groups} groups is no single matrix to split")
    return cast("tuple[int, ...]", module.kernel_size)


def empty_pair(module: nn.Module, axes: Axes, rank: int) -> nn.Sequential:
    """Return two layers for a linear or convolution module, their weights not set; the second has the bias.

    Device, dtype, requires_grad and mode are those of the module. No random number is drawn.
    Raises ValueError for a rank below 1.
    """
    if rank < 1:
        raise ValueError(f"the rank of a factorised layer must be at least 1, got {rank}")
    thin = _linears(module, rank) if isinstance(module, nn.Linear) else _convs(module, axes, rank)
    weight = cast(Tensor, module.weight)
    first, second = (layer.to_empty(device=weight.device) for layer in thin)
    for layer in (first, second):
        layer.weight.requires_grad_(weight.requires_grad)
    if isinstance(module.bias, Tensor):
        cast(Tensor, second.bias).requires_grad_(module.bias.requires_grad)
    return nn.Sequential(first, second).train(module.training)


def filled_pair(module: nn.Module, axes: Axes, first: Tensor, second: Tensor) -> nn.Sequential:
    """Return the pair of a module with these weights (any dtype), and the module's bias."""
    pair = empty_pair(module, axes, len(first))
    with torch.no_grad():
        cast(Tensor, pair[0].weight).copy_(first)
        cast(Tensor, pair[1].weight).copy_(second)
        if isinstance(module.bias, Tensor):
            cast(Tensor, pair[1].bias).copy_(module.bias)
    return pair


def _linears(module: nn.Linear, rank: int) -> tuple[nn.Linear, nn.Linear]:
    # layers made on the device "meta" draw no random weights
    place: dict[str, Any] = {"device": "meta", "dtype": module.weight.dtype}
    first = nn.Linear(module.in_features, rank, bias=False, **place)
    second = nn.Linear(rank, module.out_features, bias=module.bias is not None, **place)
    return first, second


def _convs(module: nn.Module, axes: Axes, rank: int) -> tuple[nn.Conv2d, nn.Conv2d]:
    conv = cast(nn.Conv2d, module)
    common: dict[str, Any] = {"padding_mode": conv.padding_mode, "device": "meta", "dtype": conv.weight.dtype}
    geometry_1, geometry_2 = _geometries(conv, axes)
    first = type(conv)(conv.in_channels, rank, bias=False, **geometry_1, **common)
    second = type(conv)(rank, conv.out_channels, bias=conv.bias is not None, **geometry_2, **common)
    return first, second


def _geometries(conv: nn.Conv2d, axes: Axes) -> tuple[dict[str, Any], dict[str, Any]]:
    first: dict[str, Any] = {}
    second: dict[str, Any] = {}
    for name, neutral in (("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
        value = getattr(conv, name)
        # "same" and "valid" mean the right thing on each axis alone
        halves = (value, value) if isinstance(value, str) else split_axes(value, axes, neutral=neutral)
        first[name], second[name] = halves
    return first, second
