"""Sizes that stand in Python code, repaired pattern by pattern: one file each, with a function `sizes`.

`sizes(module, op, result)` looks at one operation inside the scope of one module and yields
(attribute, labels): the int attribute of the module that has to count these labels after a cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn

from autoprune.graph.adapters import attention_sizes, zero_pad
from autoprune.graph.labels import IntArray, Value
from autoprune.graph.relations import Operation, Relations

Adapter = Callable[[nn.Module, Operation, Value], Iterator[tuple[str, IntArray]]]

ADAPTERS: tuple[Adapter, ...] = (zero_pad.sizes, attention_sizes.sizes)


def apply(op: Operation, rel: Relations, results: tuple[Value, ...]) -> None:
    """Let every adapter look at an operation, from the innermost module outwards."""
    for scope in reversed(op.scopes):
        module = rel.modules.get(scope)
        if module is None:
            continue
        for adapter in ADAPTERS:
            for attribute, labels in adapter(module, op, results[0]):
                rel.counter(scope, attribute, labels, op)
