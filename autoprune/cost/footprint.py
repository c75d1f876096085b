"""Memory and energy that one forward pass takes, counted on the exported graph; nothing here is measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import Node
from torch.utils import _pytree as pytree

from autoprune.graph import tracer
from autoprune.tasks import eval_mode

# Energy of one operation in picojoule at 45 nm, by the bits of its numbers. Horowitz, ISSCC 2014.
_PJ_PER_MAC = {32: 3.7 + 0.9, 16: 1.1 + 0.4, 8: 0.2 + 0.1}
"""Multiply and add; products of 8 bits are summed in 32-bit integers."""
_PJ_PER_BYTE = 640 / 4
"""Of one byte from or to main memory."""

# They hand on what they were given without saying so in their schema.
_PASSES_ON = frozenset({"dropout", "contiguous", "feature_dropout", "alpha_dropout"})


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What a forward pass holds and moves, in elements, for the inputs that it was counted with.

    peak_activations: the most that is alive at once: what an operator reads and writes, and what a later one still
    needs. activations: all tensors together, inputs and outputs too. Views and in-place operators add nothing.
    """

    peak_activations: int
    activations: int
    weights: int

    def peak_bytes(self, bits: int = 32) -> int:
        """Return the peak of activations in bytes, for elements of so many bits."""
        return self.peak_activations * bits // 8

    def moved_bytes(self, bits: int = 32, activation_bits: int | None = None) -> int:
        """Return the bytes moved when weights are read once, and each activation written once and read once.

        activation_bits: of an activation, as many as of a weight by default.
        """
        return self.weights * bits // 8 + 2 * self.activations * (activation_bits or bits) // 8


def energy_proxy_pj(macs: float, moved_bytes: float, bits: int = 32) -> float:
    """Return a proxy of the energy of one forward pass in picojoule: operations, and bytes from and to memory.

    Operations and memory of a 45 nm process (Horowitz, ISSCC 2014), no cache, no idle power: it ranks models, and is no
    measurement. Raises KeyError for other than 8, 16 or 32 bits.
    """
    return macs * _PJ_PER_MAC[bits] + moved_bytes * _PJ_PER_BYTE


def footprint(model: nn.Module, inputs: Any) -> Footprint:
    """Count a model's forward pass in eval mode, in the order of its graph. Raises TraceFailed."""
    with eval_mode(model), torch.no_grad():
        program = tracer.export(model, tracer.as_inputs(inputs))
    inputs_of_user = set(program.graph_signature.user_inputs)
    nodes = list(program.graph.nodes)
    stores = _Stores()
    for position, node in enumerate(nodes):
        is_state = node.op == "placeholder" and node.name not in inputs_of_user
        if not is_state:
            stores.add(node, position, is_last=node.op == "output")
    distinct = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return Footprint(
        peak_activations=stores.peak(len(nodes)),
        activations=sum(stores.sizes.values()),
        weights=sum(t.numel() for t in distinct.values()),
    )


class _Stores:
    """Memory of activations: elements of each, the node at which it begins and the last one that needs it."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}
        self._of: dict[Node, list[int]] = {}
        self._begin: dict[int, int] = {}
        self._end: dict[int, int] = {}

    def add(self, node: Node, position: int, *, is_last: bool) -> None:
        """Take up a node: what it reads lives at least until now, what it writes begins."""
        for source in node.all_input_nodes:
            for store in self._of.get(source, ()):
                self._end[store] = position
        if is_last or node.op == "get_attr":
            return
        shared = _shared_with(node)
        if shared is not None:
            self._of[node] = self._of.get(shared, [])
            return
        self._of[node] = [self._new(value.numel(), position) for value in _tensors(node.meta.get("val"))]

    def _new(self, size: int, position: int) -> int:
        store = len(self.sizes)
        self.sizes[store], self._begin[store], self._end[store] = int(size), position, position
        return store

    def peak(self, length: int) -> int:
        """Return the most elements that are alive while one node runs."""
        alive = [0] * (length + 1)
        for store, size in self.sizes.items():
            alive[self._begin[store]] += size
            alive[self._end[store] + 1] -= size
        highest = now = 0
        for change in alive:
            now += change
            highest = max(highest, now)
        return highest


def _shared_with(node: Node) -> Node | None:
    """Return the node whose memory this one's result lies in, None for memory of its own."""
    if node.op != "call_function" or not node.all_input_nodes:
        return None
    schema = getattr(node.target, "_schema", None)
    if schema is None or tracer.operator_name(node.target) in _PASSES_ON:
        # an item of what an operator returned
        return node.all_input_nodes[0]
    returned = [r.alias_info.before_set for r in schema.returns if r.alias_info is not None]
    for argument, value in zip(schema.arguments, node.args, strict=False):
        info = argument.alias_info
        if info is not None and isinstance(value, Node) and any(info.before_set & found for found in returned):
            return value
    return None


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, torch.Tensor):
            yield leaf
