"""How each operator relates the labels of its tensors. One file per kind, each with a table RULES.

A rule takes the operation and the relations, ties or locks labels, and returns one Value per result. An
operator without a rule that is not element-wise locks everything it touches.
"""

from __future__ import annotations

from collections.abc import Callable

from autoprune.graph.labels import Value
from autoprune.graph.relations import Operation, Relations
from autoprune.graph.rules import (
    attention,
    convolution,
    elementwise,
    joining,
    linear,
    moving,
    normalisation,
    pooling,
    recurrent,
    reduction,
    reshaping,
)

Rule = Callable[[Operation, Relations], tuple[Value, ...]]

RULES: dict[str, Rule] = {
    **attention.RULES,
    **convolution.RULES,
    **elementwise.RULES,
    **joining.RULES,
    **linear.RULES,
    **moving.RULES,
    **normalisation.RULES,
    **pooling.RULES,
    **recurrent.RULES,
    **reduction.RULES,
    **reshaping.RULES,
}


def apply(op: Operation, rel: Relations) -> tuple[Value, ...]:
    """Apply the rule of an operation, or lock what it touches and note its name."""
    rule = RULES.get(op.name)
    if rule is None and op.pointwise and len(op.shapes) == 1:
        rule = elementwise.pointwise
    if rule is not None:
        return rule(op, rel)
    rel.unknown(op)
    return tuple(Value(shape, (None,) * len(shape)) for shape in op.shapes)
