"""Operators that join, split and pad axes."""

from __future__ import annotations

import itertools
from typing import cast

import numpy as np

from autoprune.graph.labels import Axis, Value
from autoprune.graph.relations import Operation, Relations


def cat(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """Labels join along one axis and tie along the others."""
    values = [value for value in op.values() if value.shape != (0,)]
    dim = op.integer("dim") % len(op.shape)
    axes: list[Axis] = []
    for axis in range(len(op.shape)):
        parts = [value.axes[axis] for value in values]
        axes.append(_joined(op, rel, values, dim) if axis == dim else _tied(op, rel, parts))
    return (Value(op.shape, tuple(axes)),)


def _joined(op: Operation, rel: Relations, values: list[Value], dim: int) -> Axis:
    if all(value.axes[dim] is None for value in values):
        return None
    parts = []
    for value in values:
        labels = value.axes[dim]
        if labels is None:
            labels = rel.labels.new(value.shape[dim])
            rel.labels.lock(labels, op.why("joined from channels that cannot be cut"))
        parts.append(labels)
    return np.concatenate(parts)


def _tied(op: Operation, rel: Relations, parts: list[Axis]) -> Axis:
    result = parts[0]
    for other in parts[1:]:
        result = rel.tie(result, other, op, "joined side by side with channels that cannot be cut")
    return result


def stack(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """A new axis; all others are tied."""
    values = op.values()
    axes = [_tied(op, rel, [value.axes[i] for value in values]) for i in range(len(values[0].shape))]
    axes.insert(op.integer("dim") % len(op.shape), None)
    return (Value(op.shape, tuple(axes)),)


def chunk(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """Equal parts: what Python divides by a fixed number must stay balanced, so the parts are tied place by
    place."""
    value = op.value("self")
    dim = op.integer("dim") % len(value.shape)
    labels = value.axes[dim]
    lengths = {shape[dim] for shape in op.shapes}
    if labels is None or len(lengths) > 1:
        rel.labels.lock(labels, op.why("split into unequal parts"))
        return _parts(op, value, dim, [None] * len(op.shapes))
    parts = list(labels.reshape(len(op.shapes), -1))
    for other in parts[1:]:
        rel.tie(parts[0], other, op, "the same place in every part")
    return _parts(op, value, dim, cast("list[Axis]", parts))


def split(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """Parts of fixed sizes. The sizes stand in Python code: verification finds the parts that can be cut
    anyway."""
    value = op.value("self")
    dim = op.integer("dim") % len(value.shape)
    labels = value.axes[dim]
    if labels is None:
        return _parts(op, value, dim, [None] * len(op.shapes))
    bounds = np.cumsum([0, *(shape[dim] for shape in op.shapes)]).tolist()
    for start, stop in itertools.pairwise(bounds):
        rel.part(op, value, dim, start, stop)
    return _parts(op, value, dim, list(np.split(labels, bounds[1:-1])))


def _parts(op: Operation, value: Value, dim: int, parts: list[Axis]) -> tuple[Value, ...]:
    return tuple(
        Value(shape, tuple(part if axis == dim else labels for axis, labels in enumerate(value.axes)))
        for shape, part in zip(op.shapes, parts, strict=True)
    )


def pad(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """Zeros around a labelled axis are new channels; whatever follows ties them."""
    value, widths = op.value("self"), op.ints("pad")
    constant = op.arguments.get("mode", "constant") == "constant"
    zero = constant and not op.arguments.get("value")
    axes = list(value.axes)
    for i in range(len(widths) // 2):
        axis = len(axes) - 1 - i
        axes[axis] = _padded(op, rel, axes[axis], widths[2 * i], widths[2 * i + 1], zero)
    return (Value(op.shape, tuple(axes)),)


def _padded(op: Operation, rel: Relations, labels: Axis, before: int, after: int, zero: bool) -> Axis:
    if labels is None or before == after == 0:
        return labels
    if before < 0 or after < 0 or not zero:
        rel.labels.lock(labels, op.why("padded with something other than zeros, or cropped"))
        return None
    first, last = rel.labels.new(before), rel.labels.new(after)
    rel.hints.append((np.concatenate([first, last]), op.why("Python code pads these channels by a fixed number")))
    return np.concatenate([first, labels, last])


RULES = {
    "cat": cat,
    "concat": cat,
    "concatenate": cat,
    "stack": stack,
    "chunk": chunk,
    "split": split,
    "split_with_sizes": split,
    "pad": pad,
    "constant_pad_nd": pad,
}
