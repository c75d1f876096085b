"""Which operators of an exported graph need not run when the results of some others are given."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator

import torch
from torch.fx import Node

from autoprune.graph import tracer

_FRESH = frozenset({
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear", "matmul",
    "batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "softmax", "scaled_dot_product_attention",
})  # fmt: skip
"""Operators whose result never shares memory with what they are given, although torch makes them of others."""


def unneeded(nodes: Collection[Node], given: Collection[Node]) -> set[Node]:
    """The operators that no output depends on when other results, in memory of their own, replace those of `given`.

    What writes into memory that an output depends on is needed too.
    """
    roots: dict[Node, frozenset[Node]] = {}
    for node in nodes:
        roots[node] = frozenset({node}) if node in given else _roots(node, roots)
    writers = {node: found for node in nodes if (found := _written(node, roots))}
    run: set[Node] = set()
    read: set[Node] = set()
    asked = [node for node in nodes if node.op == "output"]
    while asked:
        _need(asked, run, read, given)
        alive = frozenset().union(*(roots[node] for node in read))
        asked = [node for node, found in writers.items() if node not in run and not found.isdisjoint(alive)]
    return {node for node in nodes if node.op == "call_function" and node not in run}


def _need(asked: list[Node], run: set[Node], read: set[Node], given: Collection[Node]) -> None:
    """Add these nodes to those that run, with all that they read and that has to run for it."""
    stack = list(asked)
    while stack:
        node = stack.pop()
        if node in run:
            continue
        run.add(node)
        read.update(node.all_input_nodes)
        stack.extend(source for source in node.all_input_nodes if source not in given)


def _roots(node: Node, roots: dict[Node, frozenset[Node]]) -> frozenset[Node]:
    """The nodes whose memory the result may share."""
    shared = frozenset().union(*(roots[source] for source in node.all_input_nodes))
    if node.op != "call_function":
        return frozenset({node})
    if not isinstance(node.target, torch._ops.OpOverload):
        return shared | {node}
    if any(item.alias_info is not None for item in node.target._schema.returns):
        return shared
    composite = node.target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
    # Those may hand on what they were given, as dropout does in eval mode, and do not say so.
    return shared | {node} if composite and tracer.operator_name(node.target) not in _FRESH else frozenset({node})


def _written(node: Node, roots: dict[Node, frozenset[Node]]) -> frozenset[Node]:
    """The nodes whose memory this one may write into."""
    if node.op != "call_function" or node.target is operator.getitem:
        return frozenset()
    return frozenset().union(*(roots[source] for source in _targets(node)))


def _targets(node: Node) -> Iterator[Node]:
    if not isinstance(node.target, torch._ops.OpOverload):
        # A graph of its own, under autocast, say.
        yield from node.all_input_nodes
        return
    for position, argument in enumerate(node.target._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
            yield from (
                item for item in (found if isinstance(found, list | tuple) else [found]) if isinstance(item, Node)
            )
