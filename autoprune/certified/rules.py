"""How operators pass intervals on. What has no rule here is an error, never a guess.

Interval bound propagation, Gowal et al., ICCV 2019, arXiv 1810.12715: with centre mu and radius r

    W x + b     mu' = W mu + b,  r' = |W| r          convolutions and linear layers
    monotone    [f(low), f(high)]                    relu, pooling, sums of intervals, everything that moves elements
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from autoprune.certified.box import Interval

Rule = Callable[..., Any]

MONOTONE = frozenset({
    # rising in every element
    "relu", "relu6", "hardtanh", "sigmoid", "tanh", "clamp", "clamp_min", "clamp_max",
    "max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool2d", "amax", "amin",
    # means and sums of elements, no weight negative
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "mean", "sum", "cat", "stack",
    # elements moved, copied or filled in
    "flatten", "view", "reshape", "_unsafe_view", "squeeze", "unsqueeze", "permute", "transpose", "t", "slice",
    "select", "narrow", "expand", "repeat", "pad", "constant_pad_nd", "index_select", "index", "split",
    "split_with_sizes", "chunk", "unbind", "clone", "contiguous", "alias", "detach", "flip", "roll", "pixel_shuffle",
    "channel_shuffle", "to", "_to_copy", "lift_fresh_copy",
})  # fmt: skip
"""Operators that are applied to the lowest and to the highest values alike."""


def monotone(target: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Apply an operator that rises with each of its inputs."""
    low = target(*_side(args, "low"), **_side(kwargs, "low"))
    high = target(*_side(args, "high"), **_side(kwargs, "high"))
    if isinstance(low, Tensor):
        return Interval(low, high)
    return [Interval(a, b) for a, b in zip(low, high, strict=True)]


def affine(target: Callable[..., Any], args: Any, kwargs: Any) -> Interval:
    """Apply a convolution or linear layer to an interval; its weight and bias are plain tensors.

    Raises TypeError where the weight is an interval too.
    """
    x, weight, *rest = args
    bias = rest[0] if rest else kwargs.get("bias")
    if not isinstance(x, Interval) or isinstance(weight, Interval) or isinstance(bias, Interval):
        raise TypeError("weights that depend on the input")
    without = {key: value for key, value in kwargs.items() if key != "bias"}
    middle = target(x.middle, weight, bias, *rest[1:], **without)
    return Interval.around(middle, target(x.radius, weight.abs(), None, *rest[1:], **without))


def batch_norm(target: Callable[..., Any], args: Any, kwargs: Any) -> list[Any]:
    """Apply a batch norm that takes its running statistics: a scale and a shift of each channel."""
    x, weight, bias, mean, var, _, eps = args
    shape = (1, -1, *(1 for _ in range(x.low.ndim - 2)))
    scale = (var + eps).rsqrt() if weight is None else weight * (var + eps).rsqrt()
    shift = -mean * scale if bias is None else bias - mean * scale
    middle = x.middle * scale.view(shape) + shift.view(shape)
    return [Interval.around(middle, x.radius * scale.abs().view(shape)), None, None]


def add(target: Callable[..., Any], args: Any, kwargs: Any) -> Interval:
    """Add intervals, or an interval and a number or tensor; alpha scales the second."""
    a, b = args
    return _sum(as_interval(a), scaled(as_interval(b), kwargs.get("alpha", 1)))


def subtract(target: Callable[..., Any], args: Any, kwargs: Any) -> Interval:
    """Subtract; what is subtracted turns around."""
    a, b = args
    return _sum(as_interval(a), scaled(as_interval(b), -kwargs.get("alpha", 1)))


def multiply(target: Callable[..., Any], args: Any, kwargs: Any) -> Interval:
    """Multiply an interval by a number or tensor. Raises TypeError for two intervals."""
    a, b = args
    if isinstance(a, Interval) and isinstance(b, Interval):
        raise TypeError("a product of two activations")
    return scaled(a, b) if isinstance(a, Interval) else scaled(b, a)


def divide(target: Callable[..., Any], args: Any, kwargs: Any) -> Interval:
    """Divide an interval by a number or tensor. Raises TypeError where the divisor is an interval."""
    a, b = args
    if isinstance(b, Interval) or kwargs:
        raise TypeError("a division by an activation")
    return scaled(a, 1 / b)


def negate(target: Callable[..., Any], args: Any, kwargs: Any) -> Interval:
    """Turn an interval around."""
    return scaled(args[0], -1)


def scaled(x: Interval, factor: Any) -> Interval:
    """Return factor * x for a number or tensor of any signs."""
    middle, radius = x.middle * factor, x.radius * abs(factor)
    return Interval.around(middle, radius)


def as_interval(value: Any) -> Interval:
    """Return a number or tensor as an interval without width."""
    if isinstance(value, Interval):
        return value
    exact = value if isinstance(value, Tensor) else torch.tensor(value)
    return Interval(exact, exact)


def _sum(a: Interval, b: Interval) -> Interval:
    return Interval(a.low + b.low, a.high + b.high)


def _side(arguments: Any, side: str) -> Any:
    return pytree.tree_map(
        lambda value: getattr(value, side) if isinstance(value, Interval) else value,
        arguments,
        is_leaf=lambda value: isinstance(value, Interval),
    )


AFFINE = frozenset({
    "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
})  # fmt: skip
OTHERS: Mapping[str, Rule] = {
    "_native_batch_norm_legit_no_training": batch_norm,
    "add": add,
    "sub": subtract,
    "mul": multiply,
    "div": divide,
    "neg": negate,
}
