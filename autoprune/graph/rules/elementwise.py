"""Element-wise operators: aligned axes are tied, axes of size one broadcast."""

from __future__ import annotations

from autoprune.graph.labels import Axis, Value
from autoprune.graph.parts import Role
from autoprune.graph.relations import Operation, Relations


def pointwise(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """Tie all tensor arguments along every axis where they have the size of the result."""
    values = op.values()
    axes: list[Axis] = []
    for axis, size in enumerate(op.shape):
        aligned = [
            v.axes[place]
            for v in values
            if 0 <= (place := axis - len(op.shape) + len(v.shape)) < len(v.shape) and v.shape[place] == size
        ]
        axes.append(_tied(aligned, op, rel) if size > 1 and aligned else None)
    return (Value(op.shape, tuple(axes)),)


def _tied(aligned: list[Axis], op: Operation, rel: Relations) -> Axis:
    result = aligned[0]
    for other in aligned[1:]:
        result = rel.tie(result, other, op, "combined element by element with channels that cannot be cut")
    return result


def prelu(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """One slope for each channel (axis 1), or one for all."""
    value, weight = op.value("self"), op.value("weight")
    axes = list(value.axes)
    if weight.shape and weight.shape[0] > 1:
        axes[1] = rel.tie(axes[1], weight.axes[0], op, "one slope for each of the channels")
        rel.role(weight, 0, Role.OTHER)
        rel.size(weight, 0, "num_parameters")
    return (Value(op.shape, tuple(axes)),)


def same(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """The result has the labels of the first tensor; for one input of unchanged shape."""
    value = op.values()[0]
    if op.name in _NOT_ZERO:
        rel.hints.extend((labels, op.why(NOT_ZERO)) for labels in value.axes if labels is not None)
    return (Value(op.shape, value.axes, value.source if op.name in _ALIASES else None),)


def nothing(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """A check of the type of a tensor, which no cut changes."""
    return ()


NOT_ZERO = "makes something else of a zero, so that what reads a removed channel would notice"
_NOT_ZERO = ("sigmoid", "hardsigmoid", "softplus", "log_sigmoid")


_ALIASES = ("detach", "alias", "lift_fresh_copy", "contiguous", "clone")
_SAME = (
    *_ALIASES,
    "to",
    "_to_copy",
    "dropout",
    "feature_dropout",
    "alpha_dropout",
    "relu",
    "relu6",
    "hardtanh",
    "hardswish",
    "hardsigmoid",
    "silu",
    "gelu",
    "elu",
    "selu",
    "celu",
    "leaky_relu",
    "mish",
    "sigmoid",
    "tanh",
    "softplus",
    "log_sigmoid",
    "softsign",
    "softshrink",
    "hardshrink",
    "threshold",
    "rrelu",
    "native_dropout",
    "type_as",
    "zeros_like",
    "ones_like",
    "empty_like",
    "full_like",
    "rand_like",
    "randn_like",
    "fill",
    "float",
    "half",
)

RULES = {
    **dict.fromkeys(_SAME, same),
    **dict.fromkeys(
        ("add", "sub", "mul", "div", "maximum", "minimum", "rsub", "where", "masked_fill", "copy"), pointwise
    ),
    "prelu": prelu,
    "_assert_tensor_metadata": nothing,
}
