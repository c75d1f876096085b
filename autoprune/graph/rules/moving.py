"""Operators that pick, repeat, roll or shuffle indices."""

from __future__ import annotations

from typing import cast

import numpy as np

from autoprune.graph.labels import Axis, Value
from autoprune.graph.relations import Operation, Relations


def unbind(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """One result for each index of an axis: Python code names each of them, so all of them stay."""
    value = op.value("self")
    dim = op.integer("dim") % len(value.shape)
    rel.labels.lock(value.axes[dim], op.why("Python code takes these apart one by one"))
    axes = tuple(a for i, a in enumerate(value.axes) if i != dim)
    return tuple(Value(shape, axes) for shape in op.shapes)


def along_positions(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """roll and flip: the named axes stay whole (a cut would move other indices), the others pass."""
    value = op.values()[0]
    dims = op.ints("dims") or tuple(range(len(value.shape)))
    axes = list(value.axes)
    for dim in dims:
        rel.labels.lock(axes[dim], op.why("moves these channels along their own axis"))
        axes[dim] = None
    return (Value(op.shape, tuple(axes)),)


def index(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """x[i]: with one index tensor its axes take the place of the indexed one, which stays whole."""
    value = op.value("self")
    given = cast("list[object]", op.arguments["indices"])
    at = [i for i, item in enumerate(given) if item is not None]
    found = given[at[0]] if len(at) == 1 else None
    for i in at:
        rel.labels.lock(value.axes[i], op.why("picked by an index tensor"))
        item = given[i]
        if isinstance(item, Value):
            rel.lock_all(item, op.why("used as an index"))
    rank = len(found.shape) if isinstance(found, Value) else -1
    if rank < 0 or len(op.shape) != len(value.shape) - 1 + rank:
        rel.lock_all(value, op.why("picked by several index tensors"))
        return (Value(op.shape, (None,) * len(op.shape)),)
    return (Value(op.shape, (*value.axes[: at[0]], *(None,) * rank, *value.axes[at[0] + 1 :])),)


def index_select(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """Take listed indices of one axis, which stays whole."""
    value = op.value("self")
    dim = op.integer("dim") % len(value.shape)
    rel.labels.lock(value.axes[dim], op.why("picked by an index tensor"))
    return (Value(op.shape, tuple(None if i == dim else a for i, a in enumerate(value.axes))),)


def embedding(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """weight (rows, C) read by row: the columns pass."""
    weight = op.value("weight")
    rel.labels.lock(weight.axes[0], op.why("rows of a table, picked by the input"))
    return (Value(op.shape, (*(None,) * (len(op.shape) - 1), weight.axes[-1])),)


def repeat(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """Whole copies one after the other."""
    value, times = op.value("self"), op.ints("repeats")
    added = len(times) - len(value.shape)
    axes: list[Axis] = [None] * added
    for labels, n in zip(value.axes, times[added:], strict=True):
        axes.append(labels if labels is None or n == 1 else np.tile(labels, n))
    return (Value(op.shape, tuple(axes)),)


def repeat_interleave(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """Each index several times in a row, along one axis."""
    value = op.values()[0]
    times, dim = op.arguments.get("repeats"), op.arguments.get("dim")
    if not isinstance(times, int) or not isinstance(dim, int):
        rel.lock_all(value, op.why("repeated a varying number of times"))
        return (Value(op.shape, (None,) * len(op.shape)),)
    axes = list(value.axes)
    labels = axes[dim]
    axes[dim] = None if labels is None else labels.repeat(times)
    return (Value(op.shape, tuple(axes)),)


def pixel_shuffle(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """(..., C * r * r, H, W) -> (..., C, rH, rW): the r * r channels of one result stay together."""
    value, factor = op.value("self"), op.integer("upscale_factor")
    labels = value.axes[-3]
    if labels is not None:
        table = labels.reshape(-1, factor * factor)
        for column in table.T[1:]:
            rel.tie(table[:, 0], column, op, "they become one channel")
        labels = table[:, 0]
    return (Value(op.shape, (*value.axes[:-3], labels, None, None)),)


def pixel_unshuffle(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """(..., C, rH, rW) -> (..., C * r * r, H, W)."""
    value, factor = op.value("self"), op.integer("downscale_factor")
    labels = value.axes[-3]
    repeated = None if labels is None else labels.repeat(factor * factor)
    return (Value(op.shape, (*value.axes[:-3], repeated, None, None)),)


def shuffle(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """channel_shuffle: groups and places in a group change their order."""
    value, groups = op.values()[0], op.integer("groups")
    labels = value.axes[1]
    moved = None if labels is None else labels.reshape(groups, -1).T.reshape(-1)
    if moved is not None and labels is not None:
        places = labels.reshape(groups, -1)
        for row in places[1:]:
            rel.tie(places[0], row, op, "the same place in every group")
    return (Value(op.shape, (value.axes[0], moved, *value.axes[2:])),)


def created(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """A new tensor that only takes type and device from its argument."""
    return tuple(Value(shape, (None,) * len(shape)) for shape in op.shapes)


def glu(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """The first half times a gate of the second: tied place by place."""
    value = op.value("self")
    dim = op.integer("dim") % len(value.shape)
    axes = list(value.axes)
    labels = axes[dim]
    if labels is not None:
        first, second = labels.reshape(2, -1)
        axes[dim] = rel.tie(first, second, op, "a channel and its gate")
    return (Value(op.shape, tuple(axes)),)


def unfold(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """im2col: (N, C, H, W) -> (N, C * kernel, positions)."""
    value = op.value("self" if "self" in op.arguments else "input")
    labels = value.axes[1]
    repeated = None if labels is None else labels.repeat(op.shape[1] // value.shape[1])
    return (Value(op.shape, (value.axes[0], repeated, None)),)


def windows(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """Tensor.unfold: one axis becomes windows, a last axis is added."""
    value = op.value("self")
    dim = op.integer("dimension") % len(value.shape)
    rel.labels.lock(value.axes[dim], op.why("windows over these channels"))
    return (Value(op.shape, (*(None if i == dim else a for i, a in enumerate(value.axes)), None)),)


_CREATED = (
    "new_zeros", "new_ones", "new_full", "new_empty", "new_tensor", "zeros", "ones", "arange", "full", "empty",
    "linspace", "eye",
)  # fmt: skip

RULES = {
    "unbind": unbind,
    **dict.fromkeys(("roll", "flip"), along_positions),
    "index": index,
    "index_select": index_select,
    "embedding": embedding,
    **dict.fromkeys(("repeat", "tile"), repeat),
    "repeat_interleave": repeat_interleave,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), shuffle),
    **dict.fromkeys(_CREATED, created),
    "glu": glu,
    "im2col": unfold,
    "unfold": windows,
}
