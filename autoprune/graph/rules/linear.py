"""Linear layers."""

from __future__ import annotations

import math

from autoprune.graph.labels import Value
from autoprune.graph.parts import Call, Role
from autoprune.graph.relations import Operation, Reading, Relations


def linear(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """input (..., I), weight (O, I)."""
    value, weight, bias = op.value("input"), op.value("weight"), op.optional("bias")
    if (whole := rel.part_of(weight)) is not None:
        return _by_part(op, rel, whole)
    rel.role(weight, 0, Role.OUTPUT)
    rel.role(weight, 1, Role.INPUT)
    rel.tie(value.axes[-1], weight.axes[1], op, "reads features that cannot be cut")
    out = weight.axes[0]
    if bias is not None:
        rel.role(bias, 0, Role.BIAS)
        out = rel.tie(out, bias.axes[0], op, "shifts features that cannot be cut")
    rel.size(weight, 0, "out_features")
    rel.size(weight, 1, "in_features")
    if weight.source is None:
        rel.computed(weight, 0, op)
    else:
        positions = math.prod(value.shape[:-1]) / rel.batch
        call = Call((round(positions),), (round(positions),))
        rel.reads(weight, Reading(op.name, op.module, call, (), (), (), 1), positions)
    return (Value(op.shape, (*value.axes[:-1], out)),)


def _by_part(op: Operation, rel: Relations, whole: Value) -> tuple[Value, ...]:
    """With some rows of a larger weight, as attention has them for queries, keys and values."""
    value, weight, bias = op.value("input"), op.value("weight"), op.optional("bias")
    rel.role(whole, 0, Role.OUTPUT)
    rel.role(whole, 1, Role.INPUT)
    rel.tie(value.axes[-1], weight.axes[1], op, "reads features that cannot be cut")
    out = weight.axes[0]
    if bias is not None:
        rel.role(rel.part_of(bias) or bias, 0, Role.BIAS)
        out = rel.tie(out, bias.axes[0], op, "shifts features that cannot be cut")
    rel.product(op, (*value.shape[:-1], *weight.shape), (*(None,) * (len(value.shape) - 1), *weight.axes))
    return (Value(op.shape, (*value.axes[:-1], out)),)


RULES = {"linear": linear}
