"""Sizes that stand in Python code, repaired pattern by pattern: one file each, with a function `sizes`.

`sizes(module, op, result)` looks at one operation inside the scope of one module and yields
(attribute, labels): the int attribute of the module that has to count these labels after a cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from autoprune.graph.adapters import attention_sizes, multihead_attention, transformer_encoder, zero_pad
from autoprune.graph.labels import IntArray, Value
from autoprune.graph.relations import Operation, Relations

VIEWS = ("view", "reshape", "_unsafe_view")

Adapter = Callable[[nn.Module, Operation, Value], Iterator[tuple[str, IntArray]]]

ADAPTERS: tuple[Adapter, ...] = (zero_pad.sizes, attention_sizes.sizes)

FORWARDS: dict[type[nn.Module], Callable[..., Any]] = {
    nn.MultiheadAttention: multihead_attention.forward,
    nn.TransformerEncoder: transformer_encoder.forward,
}
"""Forward passes that replace a module's own, where its code refuses other sizes altogether."""


def apply(op: Operation, rel: Relations, results: tuple[Value, ...]) -> None:
    """Let every adapter look at an operation, from the innermost module outwards."""
    if op.name in VIEWS and any(axis is not None for axis in results[0].axes):
        rel.view(op.module, results[0])
    nearer = False
    for scope in reversed(op.scopes):
        module = rel.modules.get(scope)
        if module is None:
            continue
        if isinstance(module, nn.MultiheadAttention) and op.name == "linear" and scope == op.module:
            multihead_attention.relate(module, op, rel)
        own = isinstance(module, nn.MultiheadAttention)
        for adapter in ADAPTERS:
            for attribute, labels in adapter(module, op, results[0]):
                rel.counter(scope, attribute, labels, op, nearer)
                own = True
        nearer = nearer or own
