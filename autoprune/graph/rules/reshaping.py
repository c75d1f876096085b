"""Operators that move indices: reshape, permute, squeeze, slice, expand."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from autoprune.graph.labels import Axis, IntArray, Value
from autoprune.graph.relations import Operation, Relations


def reshape(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """Merge and split axes."""
    value = op.values()[0]
    axes: list[Axis] = [None] * len(op.shape)
    if math.prod(op.shape) == 0:
        rel.lock_all(value, op.why("an empty tensor"))
        return (Value(op.shape, tuple(axes)),)
    for before, after in _matched(value.shape, op.shape):
        if len(before) == len(after) == 1:
            axes[after[0]] = value.axes[before[0]]
            continue
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
    """Labels of the new axes of one run. Each old axis lands on the new ones along which its labels vary: on one
    as it is, on several as a grid; a new axis that several old ones land on is their product."""
    landed: list[list[IntArray]] = [[] for _ in sizes]
    for i in before:
        if value.axes[i] is None:
            continue
        split = _spread(value, before, i).reshape(sizes)
        along = [axis for axis in range(len(sizes)) if _varies(split, axis)]
        if not along:
            rel.labels.lock(value.axes[i], op.why("a view takes this axis away"))
            continue
        cells = split[tuple(slice(None) if axis in along else 0 for axis in range(len(sizes)))]
        for axis, labels in zip(along, [cells] if len(along) == 1 else rel.labels.split(cells), strict=True):
            landed[axis].append(labels)
    return [None if not found else found[0] if len(found) == 1 else rel.labels.join(found) for found in landed]


def _varies(split: IntArray, axis: int) -> bool:
    return bool((split != np.take(split, [0], axis=axis)).any())


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
    if op.name == "movedim":
        sources = [dim % rank for dim in op.ints("source")]
        order = [i for i in order if i not in sources]
        targets = [dim % rank for dim in op.ints("destination")]
        for target, source in sorted(zip(targets, sources, strict=True)):
            order.insert(target, source)
        return order
    if op.name == "mT":
        return [*order[:-2], order[-1], order[-2]]
    if op.name in ("transpose", "swapaxes", "swapdims"):
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
    if step == 1:
        first, last, _ = slice(start, end).indices(value.shape[dim])
        rel.part(op, value, dim, first, last)
    return (Value(op.shape, tuple(axes)),)


def narrow(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """Take a range of one axis, given by its start and length."""
    value, start = op.value("self"), op.arguments["start"]
    dim = op.integer("dim") % len(value.shape)
    if not isinstance(start, int):
        rel.lock_all(value, op.why("a range that starts where the data say"))
        return (Value(op.shape, (None,) * len(op.shape)),)
    first = start % value.shape[dim]
    rel.part(op, value, dim, first, first + op.shape[dim])
    axes = list(value.axes)
    labels = axes[dim]
    axes[dim] = None if labels is None else labels[first : first + op.shape[dim]]
    return (Value(op.shape, tuple(axes)),)


def select(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """Take one index: the axis goes, and its channels stay whole because a fixed number picks one of them."""
    value = op.value("self")
    dim = op.integer("dim") % len(value.shape)
    rel.labels.lock(value.axes[dim], op.why("a fixed index picks one of these channels"))
    return (Value(op.shape, tuple(a for i, a in enumerate(value.axes) if i != dim)),)


def expand(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """Axes keep their labels. New and widened ones hold one thing many times, so that any of it may go."""
    value = op.values()[0]
    added = len(op.shape) - len(value.shape)
    axes: list[Axis] = []
    for place, size in enumerate(op.shape):
        whole = place >= added and value.shape[place - added] == size
        axes.append(value.axes[place - added] if whole else rel.labels.new(size))
    return (Value(op.shape, tuple(axes)),)


RULES = {
    **dict.fromkeys(
        ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as"),
        reshape,
    ),
    **dict.fromkeys(("permute", "transpose", "swapaxes", "swapdims", "t", "numpy_T", "mT", "movedim"), permute),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), expand),
    "slice": slice_,
    "narrow": narrow,
    "select": select,
}
