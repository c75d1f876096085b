"""Operators that move indices: reshape, permute, squeeze, slice, expand."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from autoprune.graph.labels import Axis, IntArray, Value
from autoprune.graph.relations import Operation, Relations


def reshape(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """Merge and split axes. A merge repeats the labels of its only labelled axis; anything else locks."""
    value = op.values()[0]
    axes: list[Axis] = [None] * len(op.shape)
    if math.prod(op.shape) == 0:
        rel.lock_all(value, op.why("an empty tensor"))
        return (Value(op.shape, tuple(axes)),)
    for before, after in _matched(value.shape, op.shape):
        moved = _moved(op, rel, value, before, [op.shape[i] for i in after])
        for i, labels in zip(after, moved, strict=True):
            axes[i] = labels
    return (Value(op.shape, tuple(axes)),)


def _matched(old: tuple[int, ...], new: tuple[int, ...]) -> Iterator[tuple[list[int], list[int]]]:
    """Pair the shortest runs of old and new axes with the same number of elements. Axes of size one do not
    count."""
    left = [i for i, size in enumerate(old) if size > 1]
    right = [i for i, size in enumerate(new) if size > 1]
    while left:
        before, after = [left.pop(0)], [right.pop(0)]
        while (difference := _product(old, before) - _product(new, after)) != 0:
            if difference < 0:
                before.append(left.pop(0))
            else:
                after.append(right.pop(0))
        yield before, after


def _product(shape: tuple[int, ...], axes: list[int]) -> int:
    return math.prod(shape[i] for i in axes)


def _moved(op: Operation, rel: Relations, value: Value, before: list[int], sizes: list[int]) -> list[Axis]:
    labelled = [i for i in before if value.axes[i] is not None]
    if len(labelled) == 1:
        split = _spread(value, before, labelled[0]).reshape(sizes)
        for axis, size in enumerate(sizes):
            # Labels that vary along one new axis only are that axis's labels.
            lines = np.moveaxis(split, axis, -1).reshape(-1, size)
            if (lines == lines[0]).all():
                return [lines[0] if other == axis else None for other in range(len(sizes))]
    for i in labelled:
        rel.labels.lock(value.axes[i], op.why("a view splits or mixes these channels"))
    return [None] * len(sizes)


def _spread(value: Value, before: list[int], labelled: int) -> IntArray:
    """The labels of one axis at every element of the run."""
    labels = value.axes[labelled]
    assert labels is not None
    shape = [value.shape[i] if i == labelled else 1 for i in before]
    return np.broadcast_to(labels.reshape(shape), [value.shape[i] for i in before])


def permute(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """Reorder axes."""
    value = op.values()[0]
    order = _order(op, len(value.shape))
    return (Value(op.shape, tuple(value.axes[i] for i in order)),)


def _order(op: Operation, rank: int) -> list[int]:
    if op.name == "permute":
        return [dim % rank for dim in op.ints("dims")]
    order = list(range(rank))
    if op.name in ("transpose", "swapaxes"):
        first, second = (op.integer(name) % rank for name in list(op.arguments)[1:3])
        order[first], order[second] = order[second], order[first]
        return order
    return order[::-1]


def slice_(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """Take a range of one axis."""
    value = op.value("self")
    dim = op.integer("dim") % len(value.shape)
    start, end, step = op.arguments["start"], op.arguments["end"], op.integer("step")
    axes = list(value.axes)
    labels = axes[dim]
    axes[dim] = None if labels is None else labels[slice(start, end, step)]
    return (Value(op.shape, tuple(axes)),)


def select(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """Take one index: the axis goes, and its channels stay whole because a fixed number picks one of them."""
    value = op.value("self")
    dim = op.integer("dim") % len(value.shape)
    rel.labels.lock(value.axes[dim], op.why("a fixed index picks one of these channels"))
    return (Value(op.shape, tuple(a for i, a in enumerate(value.axes) if i != dim)),)


def expand(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """Axes keep their labels; new and widened ones have none."""
    value = op.values()[0]
    added = len(op.shape) - len(value.shape)
    axes = [None] * added + [
        labels if size == op.shape[added + i] else None
        for i, (labels, size) in enumerate(zip(value.axes, value.shape, strict=True))
    ]
    return (Value(op.shape, tuple(axes)),)


RULES = {
    **dict.fromkeys(
        ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as"),
        reshape,
    ),
    **dict.fromkeys(("permute", "transpose", "swapaxes", "t", "numpy_T"), permute),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), expand),
    "slice": slice_,
    "select": select,
}
