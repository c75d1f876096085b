"""Find residual blocks in an exported forward pass: modules whose result is their input plus branches.

From the result of a module the walk goes back over what keeps values (dropout of a traced eval pass, clones), over
additions, and over activations that change nothing when applied to the input itself (relu where the input cannot be
negative). Where it arrives at the module's input, all that was added on the way are branches; with them at zero the
module is the identity. Anything else on the way is a reason why it is none.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.fx import Node

from autoprune.graph import tracer

_KEEPS = frozenset({"dropout", "feature_dropout", "alpha_dropout", "clone", "contiguous", "alias", "detach"})
_CLAMPS = frozenset({"relu6", "hardtanh", "clamp", "clip"})
_NEVER_NEGATIVE = frozenset({"relu", "relu6", "sigmoid", "hardsigmoid", "softmax", "abs", "exp", "square", "softplus"})
_KEEPS_SIGN = _KEEPS | {
    "max_pool2d", "max_pool1d", "avg_pool2d", "avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "mean",
    "view", "reshape", "_unsafe_view", "flatten", "permute", "transpose", "unsqueeze", "squeeze", "slice", "select",
    "roll", "to", "_to_copy", "expand",
}  # fmt: skip
_ADDS = frozenset({"add", "cat"})


@dataclass(frozen=True, eq=False)
class Residual:
    """A module that adds to its input. entry: the node that its shortcut carries; exit: its result; branches: what
    is added; additions: where. problem: why its result is not its input when the branches are zero."""

    path: str
    exit: Node
    entry: Node | None = None
    branches: tuple[Node, ...] = ()
    additions: tuple[Node, ...] = ()
    problem: str = ""


@dataclass(frozen=True, eq=False)
class _Carried:
    entry: Node
    branches: tuple[Node, ...] = ()
    additions: tuple[Node, ...] = ()


class Reader:
    """One exported forward pass."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self.nodes = [node for node in program.graph.nodes if node.op == "call_function"]
        self.place = {node: i for i, node in enumerate(program.graph.nodes)}
        self._state = {n.name for n in program.graph.nodes if n.op == "placeholder"} - set(
            program.graph_signature.user_inputs
        )
        self._scopes: dict[Node, tuple[str, ...]] = {}
        for node in self.nodes:
            found = tracer.scopes(node)
            source = node.args[0] if node.args else None
            if not found and node.target is operator.getitem and isinstance(source, Node):
                found = self._scopes.get(source, ())
            self._scopes[node] = found
        self._memo: dict[tuple[str, Node], _Carried | str] = {}

    def inside(self, node: Node, path: str) -> bool:
        """Whether a node lies in the call of a module."""
        return path in self._scopes.get(node, ())

    @cached_property
    def exits(self) -> dict[str, list[Node]]:
        """Module path -> its nodes whose results are used outside of it."""
        found: dict[str, dict[Node, None]] = {}
        for node in self.nodes:
            for user in node.users:
                for path in set(self._scopes[node]) - set(self._scopes.get(user, ())):
                    found.setdefault(path, {})[node] = None
        return {path: list(nodes) for path, nodes in found.items() if path}

    @cached_property
    def _within(self) -> dict[str, list[Node]]:
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for path in dict.fromkeys(self._scopes[node]):
                found.setdefault(path, []).append(node)
        return found

    def residuals(self) -> Iterator[Residual]:
        """Yield every module with one result that ends in an addition (or concatenation) to what it was given."""
        for path, nodes in self.exits.items():
            if len(nodes) != 1:
                continue
            (end,) = nodes
            for node in self._within[path]:
                # in order, so that no walk has to go far: recursion would end at a thousand layers
                self._carried(path, node)
            carried = self._carried(path, end)
            if isinstance(carried, _Carried):
                if carried.additions and _same_kind(carried.entry, end):
                    yield Residual(path, end, carried.entry, carried.branches, carried.additions)
            elif (joined := self._join(path, end)) is not None:
                yield Residual(path, end, additions=(joined,), problem=carried)

    def _carried(self, path: str, node: Node) -> _Carried | str:
        """How the input of the module arrives at this node, or why it does not."""
        if not self.inside(node, path):
            return "what goes around is a constant" if node.name in self._state else _Carried(node)
        key = (path, node)
        if key not in self._memo:
            self._memo[key] = self._step(path, node)
        return self._memo[key]

    def _step(self, path: str, node: Node) -> _Carried | str:
        name = _name(node)
        source = node.args[0] if node.args else None
        if not isinstance(source, Node):
            return f"{name}{self._at(path, node)} is on the shortcut"
        if name in _KEEPS:
            return self._carried(path, source)
        if name == "add":
            return self._added(path, node)
        found = self._carried(path, source)
        if not isinstance(found, _Carried):
            return found
        where = f"{name}{self._at(path, node)} {'follows the addition' if found.additions else 'is on the shortcut'}"
        if name == "relu":
            return found if _not_negative(found.entry) else f"{where}, and the input can be negative"
        if name in _CLAMPS:
            return found if _clamped_alike(found.entry, node) else f"{where}, and the input may lie outside its limits"
        return where

    def _added(self, path: str, node: Node) -> _Carried | str:
        first, second = (*node.args, None)[:2]
        if not isinstance(first, Node) or not isinstance(second, Node):
            return "a number is added to its input"
        if node.kwargs.get("alpha", 1) != 1:
            return "the addition scales one addend"
        found = [self._carried(path, first), self._carried(path, second)]
        carried = [(f, other) for f, other in zip(found, (second, first), strict=True) if isinstance(f, _Carried)]
        if len(carried) == 2:
            return "both addends are its input"
        if not carried:
            # the addend that takes less work is the one meant as a shortcut
            shorter = min((0, 1), key=lambda i: len(self._above(path, (first, second)[i])[0]))
            return str(found[shorter])
        spine, branch = carried[0]
        if _shape(branch) != _shape(node) and _shape(spine.entry) != _shape(node):
            return "the addition changes the shape of its input"
        if spine.entry not in self._above(path, branch)[1]:
            return f"{branch.name}, which is added, does not depend on its input"
        return _Carried(spine.entry, (*spine.branches, branch), (*spine.additions, node))

    def _at(self, path: str, node: Node) -> str:
        inner = self._scopes[node][-1]
        return f" ({inner})" if inner != path else ""

    def _above(self, path: str, node: Node) -> tuple[set[Node], set[Node]]:
        """Nodes inside the module that a node depends on, and those outside that they read; state left out."""
        inner: set[Node] = set()
        outer: set[Node] = set()
        stack = [node]
        while stack:
            current = stack.pop()
            if not self.inside(current, path):
                outer |= {current} if current.name not in self._state else set()
            elif current not in inner:
                inner.add(current)
                stack.extend(current.all_input_nodes)
        return inner, outer

    def _join(self, path: str, node: Node) -> Node | None:
        """The addition or concatenation, in the module's own code, of two things that come from its input."""
        while self.inside(node, path):
            tensors = [n for n in node.all_input_nodes if n.name not in self._state]
            if _name(node) in _ADDS and self._scopes[node][-1] == path and len(tensors) > 1:
                outer = [self._above(path, tensor)[1] for tensor in tensors]
                weights = any(_weighs(n) for tensor in tensors for n in self._above(path, tensor)[0])
                return node if weights and set.intersection(*outer) else None
            if len(tensors) != 1 or _weighs(node):
                return None
            node = tensors[0]
        return None


def _same_kind(first: Node, second: Node) -> bool:
    one, other = first.meta.get("val"), second.meta.get("val")
    alike = isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
    return alike and one.shape == other.shape and one.dtype == other.dtype  # type: ignore[union-attr]


def _shape(node: Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()


def _name(node: Node) -> str:
    return tracer.operator_name(node.target)


def _weighs(node: Node) -> bool:
    return _name(node).startswith(("conv", "linear", "matmul", "mm", "bmm", "einsum"))


def _not_negative(node: Node) -> bool:
    """Whether no value of a node can be below zero, as its operators tell."""
    known: dict[Node, bool] = {}
    stack = [node]
    while stack:
        current = stack[-1]
        asked = _all_of(current)
        waiting = [n for n in asked if n not in known]
        if waiting:
            stack.extend(waiting)
            continue
        known[current] = _name(current) in _NEVER_NEGATIVE or (bool(asked) and all(known[n] for n in asked))
        stack.pop()
    return known[node]


def _all_of(node: Node) -> list[Node]:
    """The nodes that all have to be free of negative values, so that this one is."""
    name = _name(node)
    if name in _KEEPS_SIGN:
        return [n for n in node.args[:1] if isinstance(n, Node)]
    if name in ("add", "mul"):
        both = [n for n in node.args[:2] if isinstance(n, Node)]
        return both if len(both) == 2 and node.kwargs.get("alpha", 1) == 1 else []
    if name == "cat" and isinstance(node.args[0], list | tuple):
        return [n for n in node.args[0] if isinstance(n, Node)]
    return []


def _clamped_alike(entry: Node, node: Node) -> bool:
    """Whether the input went through the same clamp already, with nothing but pools or copies behind it."""
    while _name(entry) in _KEEPS or _name(entry).startswith("max_pool"):
        source = entry.args[0]
        if not isinstance(source, Node):
            return False
        entry = source
    return _name(entry) == _name(node) and entry.args[1:] == node.args[1:] and entry.kwargs == node.kwargs
