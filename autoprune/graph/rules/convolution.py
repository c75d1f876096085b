"""Convolutions: plain, grouped, depthwise, transposed."""

from __future__ import annotations

import math

from autoprune.graph.labels import Axis, Value
from autoprune.graph.parts import Call, Role
from autoprune.graph.relations import Operation, Reading, Relations


def convolution(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """input (N, C, *positions), weight (O, C / groups, *kernel)."""
    value, weight, groups = op.value("input"), op.value("weight"), op.integer("groups")
    channel = len(value.shape) - len(weight.shape) + 1
    _lock_positions(op, rel, value, weight, channel)
    if groups > 1 and groups == value.shape[channel]:
        out = _depthwise(op, rel, value.axes[channel], weight)
    else:
        out = _grouped(op, rel, value.axes[channel], weight, groups)
    out = _bias(op, rel, out)
    _cost(op, rel, value, weight, channel)
    return (_result(op, channel, out),)


def _grouped(op: Operation, rel: Relations, into: Axis, weight: Value, groups: int) -> Axis:
    """With groups, the same position of every group is one unit, so the number of groups never changes."""
    rel.role(weight, 0, Role.OUTPUT)
    rel.role(weight, 1, Role.INPUT)
    if groups > 1:
        into = _first_group(op, rel, into, groups)
        _first_group(op, rel, weight.axes[0], groups)
    rel.tie(into, weight.axes[1], op, "reads channels that cannot be cut")
    rel.size(weight, 0, "out_channels")
    rel.size(weight, 1, "in_channels", multiply=groups)
    return weight.axes[0]


def _first_group(op: Operation, rel: Relations, labels: Axis, groups: int) -> Axis:
    if labels is None:
        return None
    parts = labels.reshape(groups, -1)
    for part in parts[1:]:
        rel.tie(parts[0], part, op, "the same place in every group")
    first: Axis = parts[0]
    return first


def _depthwise(op: Operation, rel: Relations, into: Axis, weight: Value) -> Axis:
    """Filter c * multiplier + j belongs to channel c. The number of groups is the number of channels."""
    multiplier = weight.shape[0] // op.integer("groups")
    repeated = None if into is None else into.repeat(multiplier)
    rel.tie(repeated, weight.axes[0], op, "filters channels that cannot be cut")
    rel.role(weight, 0, Role.DEPTHWISE)
    rel.size(weight, 0, "out_channels")
    for attribute in ("in_channels", "groups"):
        rel.size(weight, 0, attribute, divide=multiplier)
    return weight.axes[0]


def transposed(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """input (N, C, *positions), weight (C, O / groups, *kernel). Grouped ones stay whole."""
    value, weight, groups = op.value("input"), op.value("weight"), op.integer("groups")
    channel = len(value.shape) - len(weight.shape) + 1
    _lock_positions(op, rel, value, weight, channel)
    if groups > 1:
        why = op.why("a grouped transposed convolution is left whole")
        for axis in (value.axes[channel], weight.axes[0], weight.axes[1]):
            rel.labels.lock(axis, why)
        out: Axis = None
    else:
        rel.role(weight, 1, Role.OUTPUT)
        rel.role(weight, 0, Role.INPUT)
        rel.tie(value.axes[channel], weight.axes[0], op, "reads channels that cannot be cut")
        rel.size(weight, 0, "in_channels")
        rel.size(weight, 1, "out_channels")
        out = weight.axes[1]
    out = _bias(op, rel, out)
    _cost(op, rel, value, weight, channel)
    return (_result(op, channel, out),)


def _bias(op: Operation, rel: Relations, out: Axis) -> Axis:
    bias = op.optional("bias")
    if bias is None:
        return out
    rel.role(bias, 0, Role.BIAS)
    return rel.tie(out, bias.axes[0], op, "shifts channels that cannot be cut")


def _lock_positions(op: Operation, rel: Relations, value: Value, weight: Value, channel: int) -> None:
    for axis in (*value.axes[:channel], *value.axes[channel + 1 :]):
        rel.labels.lock(axis, op.why("a batch or spatial axis"))
    for axis in weight.axes[2:]:
        rel.labels.lock(axis, op.why("a kernel axis"))
    if weight.source is None:
        rel.computed(op, weight)
        rel.lock_all(weight, op.why("the weight is computed in the forward pass"))


def _result(op: Operation, channel: int, out: Axis) -> Value:
    axes: list[Axis] = [None] * len(op.shape)
    axes[channel] = out
    return Value(op.shape, tuple(axes))


def _cost(op: Operation, rel: Relations, value: Value, weight: Value, channel: int) -> None:
    if weight.source is None:
        return
    into, out = value.shape[channel + 1 :], op.shape[channel + 1 :]
    # A transposed convolution applies its kernel once for each input position.
    positions = math.prod(into if op.name.startswith("conv_transpose") else out)
    samples = math.prod(value.shape[:channel]) / rel.batch
    dims = len(into)
    padding = op.arguments["padding"]
    rel.reads(
        weight,
        Reading(
            op.name,
            op.module,
            Call(into, out),
            _full(op.ints("stride"), dims),
            (0,) * dims if isinstance(padding, str) else _full(op.ints("padding"), dims),
            _full(op.ints("dilation"), dims),
            op.integer("groups"),
        ),
        positions * samples,
    )


def _full(given: tuple[int, ...], dims: int) -> tuple[int, ...]:
    return given * dims if len(given) == 1 else given


RULES = {
    **{f"conv{n}d": convolution for n in (1, 2, 3)},
    "conv_transpose1d": transposed,
    "conv_transpose2d": transposed,
    "conv_transpose3d": transposed,
}
