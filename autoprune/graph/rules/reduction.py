"""Reductions and softmax: what they combine stays whole, except in a sum, where a zero does not count."""

from __future__ import annotations

from autoprune.graph.labels import Axis, Value
from autoprune.graph.relations import Operation, Relations
from autoprune.graph.rules import elementwise, response


def reduce(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """Remove the reduced axes (all of them without dims), or keep them with size one."""
    value = op.values()[0]
    if len(op.values()) > 1:
        # max of two tensors
        return elementwise.pointwise(op, rel)
    if not value.shape:
        return tuple(Value(shape, (None,) * len(shape)) for shape in op.shapes)
    dims = {dim % len(value.shape) for dim in op.ints("dim")} or set(range(len(value.shape)))
    keepdim = bool(op.arguments.get("keepdim", False))
    axes: list[Axis] = []
    for axis, labels in enumerate(value.axes):
        if axis in dims:
            if op.name == "mean" and response.follows(op, rel, value, axis):
                pass
            elif op.name not in _ZEROS_DO_NOT_COUNT and not op.unused:
                rel.labels.lock(labels, op.why("combines all channels"))
            axes.extend([None] if keepdim else [])
        else:
            axes.append(labels)
    return tuple(Value(shape, tuple(axes)) for shape in op.shapes)


def along(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """Softmax and its like: one axis stays whole, the others pass."""
    value = op.values()[0]
    dim = op.integer("dim") % len(value.shape)
    rel.labels.lock(value.axes[dim], op.why("combines all channels"))
    axes = tuple(None if axis == dim else labels for axis, labels in enumerate(value.axes))
    return (Value(op.shape, axes),)


_ZEROS_DO_NOT_COUNT = ("sum", "linalg_vector_norm", "norm")

RULES = {
    **dict.fromkeys(
        (
            *_ZEROS_DO_NOT_COUNT,
            "mean",
            "max",
            "min",
            "argmax",
            "any",
            "all",
            "var_mean",
            "std_mean",
            "amax",
            "amin",
            "var",
            "std",
            "logsumexp",
        ),
        reduce,
    ),
    **dict.fromkeys(("softmin", "softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum"), along),
}
