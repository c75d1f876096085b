"""Recurrent layers: their gates share one weight and torch checks every size, so they stay whole, by name."""

from __future__ import annotations

from autoprune.graph.labels import Value
from autoprune.graph.parts import Role
from autoprune.graph.relations import Operation, Relations


def recurrent(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """Lock everything; the weights are noted as producers, so that the report names them."""
    rel.unsupported.setdefault(op.target)
    for value in op.values():
        if len(value.shape) == 2 and value.source is not None:
            rel.role(value, 0, Role.OUTPUT)
        rel.lock_all(value, op.why("a recurrent layer stays whole"))
    return tuple(Value(shape, (None,) * len(shape)) for shape in op.shapes)


RULES = dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), recurrent)
