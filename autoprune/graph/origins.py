"""Follow an activation back to the layer that computes it, through operators that only move numbers about."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from autoprune.graph.labels import Value
from autoprune.graph.relations import Origin, Relations

_MOVING = frozenset(
    {
        "view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose",
        "select", "slice", "unbind", "chunk", "split", "split_with_sizes", "contiguous", "clone", "alias", "getitem",
        "dropout", "to", "_to_copy", "expand", "detach",
    }
)  # fmt: skip


def origin(node: Node, seen: dict[Node, Any], rel: Relations) -> Origin | None:
    """The linear layer or convolution behind this node, and its rows in it; None if anything else happens.

    A factor that is a number is no more than a move.
    """
    chain: list[Node] = []
    while (_name(node) in _MOVING or _scales(node)) and node.args and isinstance(node.args[0], Node):
        chain.append(node)
        node = node.args[0]
    if _name(node) not in ("linear", "conv2d", "conv1d"):
        return None
    weight, bias = (seen.get(a) if isinstance(a, Node) else None for a in (*node.args[1:3], None)[:2])
    if not isinstance(weight, Value):
        return None
    shape = tuple(node.meta["val"].shape)
    whole = rel.part_of(weight)
    rows = torch.arange(weight.shape[0])
    if whole is not None and whole.axes[0] is not None and weight.axes[0] is not None:
        rows = torch.from_numpy(np.flatnonzero(np.isin(whole.axes[0], weight.axes[0])))
        weight, bias = whole, rel.part_of(bias) or bias
    if _name(node) != "linear":
        rows = rows.view(-1, *(1,) * (len(weight.shape) - 2))
    moved: Any = rows.expand(shape)
    for step in reversed(chain):
        if _name(step) in ("dropout", "to", "_to_copy", "contiguous", "clone", "detach", "alias") or _scales(step):
            continue
        # The values lie otherwise in memory than in the model, where a view may be possible that is none here.
        target: Any = torch.ops.aten.reshape.default if _name(step) in ("view", "_unsafe_view") else step.target
        moved = target(moved, *step.args[1:], **step.kwargs)
    return Origin(weight, bias if isinstance(bias, Value) else None, np.unique(moved.numpy()).astype(np.int64))


def _scales(node: Node) -> bool:
    return _name(node) == "mul" and len(node.args) == 2 and isinstance(node.args[1], int | float)


def _name(node: Node) -> str:
    if node.target is operator.getitem:
        return "getitem"
    packet = getattr(node.target, "overloadpacket", None)
    return str(packet.__name__) if packet is not None else ""
