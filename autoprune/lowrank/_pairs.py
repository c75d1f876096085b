"""Thin layers in the place of one: what they cost and how they are made.

Of two, the first turns the input channels into R, the second those into the output channels. Every kernel
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
_GEOMETRY = (("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1))
"""What a convolution says by axis, and its neutral value."""


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
    check_rank(rank)
    thin = _linears(module, rank) if isinstance(module, nn.Linear) else _convs(module, axes, rank)
    return _like(module, *thin)


def empty_triple(conv: nn.Conv2d, core_in: int, core_out: int) -> nn.Sequential:
    """Return 1x1, a core with the geometry of a convolution, and 1x1 with its bias; otherwise as `empty_pair`."""
    make, place = type(conv), _place(conv)
    geometry: dict[str, Any] = {name: getattr(conv, name) for name, _ in _GEOMETRY}
    first = make(conv.in_channels, core_in, 1, bias=False, **place)
    core = make(core_in, core_out, bias=False, padding_mode=conv.padding_mode, **geometry, **place)
    return _like(conv, first, core, make(core_out, conv.out_channels, 1, bias=conv.bias is not None, **place))


def check_rank(rank: int) -> None:
    """Raises ValueError for a rank below 1."""
    if rank < 1:
        raise ValueError(f"the rank of a factorised layer must be at least 1, got {rank}")


def _like(module: nn.Module, *thin: nn.Module) -> nn.Sequential:
    weight = cast(Tensor, module.weight)
    layers = [layer.to_empty(device=weight.device) for layer in thin]
    for layer in layers:
        cast(Tensor, layer.weight).requires_grad_(weight.requires_grad)
    if isinstance(module.bias, Tensor):
        cast(Tensor, layers[-1].bias).requires_grad_(module.bias.requires_grad)
    return nn.Sequential(*layers).train(module.training)


def fill(thin: nn.Sequential, module: nn.Module, *weights: Tensor, shift: Tensor | None = None) -> nn.Sequential:
    """Give thin layers, in place, these weights (any dtype), and the last one the module's bias, shifted by (O,)."""
    with torch.no_grad():
        for layer, weight in zip(thin, weights, strict=True):
            cast(Tensor, layer.weight).copy_(weight)
        if isinstance(module.bias, Tensor):
            bias = cast(Tensor, thin[-1].bias)
            bias.copy_(module.bias if shift is None else module.bias + shift)
    return thin


def _place(module: nn.Module) -> dict[str, Any]:
    # layers made on the device "meta" draw no random weights
    return {"device": "meta", "dtype": cast(Tensor, module.weight).dtype}


def _linears(module: nn.Linear, rank: int) -> tuple[nn.Linear, nn.Linear]:
    place = _place(module)
    first = nn.Linear(module.in_features, rank, bias=False, **place)
    second = nn.Linear(rank, module.out_features, bias=module.bias is not None, **place)
    return first, second


def _convs(module: nn.Module, axes: Axes, rank: int) -> tuple[nn.Conv2d, nn.Conv2d]:
    conv = cast(nn.Conv2d, module)
    common = {"padding_mode": conv.padding_mode, **_place(conv)}
    geometry_1, geometry_2 = _geometries(conv, axes)
    first = type(conv)(conv.in_channels, rank, bias=False, **geometry_1, **common)
    second = type(conv)(rank, conv.out_channels, bias=conv.bias is not None, **geometry_2, **common)
    return first, second


def _geometries(conv: nn.Conv2d, axes: Axes) -> tuple[dict[str, Any], dict[str, Any]]:
    first: dict[str, Any] = {}
    second: dict[str, Any] = {}
    for name, neutral in _GEOMETRY:
        value = getattr(conv, name)
        # "same" and "valid" mean the right thing on each axis alone
        halves = (value, value) if isinstance(value, str) else split_axes(value, axes, neutral=neutral)
        first[name], second[name] = halves
    return first, second
