"""The exported forward pass of a model, and where in it the units of each group are written and read.

The structure says where units live in weights; this says where their values are. Follows weights by name, so it works
for cut models with their restricted structure.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils import _pytree as pytree

from autoprune.graph import tracer
from autoprune.graph.parts import Group, IntArray, Place, Role
from autoprune.graph.structure import Structure

_CARRIES = frozenset({"batch_norm", "instance_norm", "group_norm", "dropout", "clone", "contiguous", "alias", "to"})
"""Operators besides the element-wise ones behind which a unit is still itself, at the same index."""
_MERGES = frozenset({"flatten", "view", "reshape", "_unsafe_view", "squeeze"})
_POOLS = ("adaptive_avg_pool", "avg_pool", "max_pool", "adaptive_max_pool", "mean", "dropout", "clone", "contiguous")


@dataclass(frozen=True, eq=False)
class Tap:
    """Where a group's units are in the result of one node. indices: (C, m) on that axis."""

    node: str
    axis: int
    indices: IntArray

    def values(self, result: Tensor) -> Tensor:
        """Return (N, C, m, ...): the values of every unit in a result whose axis 0 is the samples."""
        moved = result.movedim(self.axis, 1)
        return moved[:, torch.tensor(self.indices, device=result.device)]


class Flow:
    """The forward pass as a graph of operators, for one batch size."""

    def __init__(
        self, model: nn.Module, structure: Structure, inputs: Any, program: torch.export.ExportedProgram | None = None
    ) -> None:
        """Export `model`, in the mode it is in, on one batch, or take the program of a model alike.

        Raises TraceFailed.
        """
        self._structure = structure
        self.program = tracer.export(model, tracer.as_inputs(inputs)) if program is None else program
        self._names = tracer.state_names(model)
        self._state = dict(model.named_parameters(remove_duplicate=False)) | dict(
            model.named_buffers(remove_duplicate=False)
        )

    @property
    def nodes(self) -> list[Node]:
        """All nodes, in order."""
        return list(self.program.graph.nodes)

    @cached_property
    def state_of(self) -> dict[str, str]:
        """Placeholder node -> parameter or buffer, by its own name in the model."""
        signature = self.program.graph_signature
        return {**signature.inputs_to_parameters, **signature.inputs_to_buffers}

    def tensor(self, node: Node) -> Tensor | None:
        """Return the parameter or buffer that a node stands for."""
        return self._state.get(self.state_of.get(node.name, ""))

    def arguments(self, inputs: Any) -> list[Any]:
        """Return what the graph's placeholders stand for, in order, for one batch."""
        constants = cast("dict[str, Any]", self.program.constants)
        lifted = self.program.graph_signature.inputs_to_lifted_tensor_constants
        own = iter(pytree.tree_leaves(tracer.as_inputs(inputs)))
        found: list[Any] = []
        for node in self.nodes:
            if node.op == "placeholder":
                held = self.tensor(node)
                if held is None:
                    held = constants[lifted[node.name]] if node.name in lifted else next(own)
                found.append(held)
        return found

    def run(self, inputs: Any, see: Callable[[Node, Any], Any], without: Collection[Node] = ()) -> Any:
        """Run one batch and return its outputs, flat.

        `see` gets every operator's node and result and returns what goes on in its place. The nodes in `without` are
        not computed; their result is None.
        """
        return _Run(self.program.graph_module, see, without).run(*self.arguments(inputs))

    def written(self, group: Group) -> tuple[Tap, ...]:
        """Where each producer's units are final: behind its norm, activation and depthwise convolution.

        Stops before anything that joins the producers of a residual stream, or that several operators read. Left out
        are producers of factors that scale the units' maps as a whole (squeeze and excitation).
        """
        found: dict[str, Tap] = {}
        for node, place in self._users(group.places_with(Role.OUTPUT)):
            end, tap = self._forward(node, Tap(node.name, _channel_axis(node), place.indices))
            if not _scales_maps(end):
                found[tap.node] = tap
        return tuple(found.values())

    def read(self, group: Group) -> tuple[Tap, ...]:
        """What the group's readers read, before any pooling: one tap for each different tensor."""
        found: dict[str, Tap] = {}
        for node, place in self._users(group.places_with(Role.INPUT)):
            source = node.args[0]
            if isinstance(source, Node) and _shape(source):
                axis = _channel_axis(node, of=source)
                tap = Tap(source.name, axis, _over_groups(place.indices, node, source, axis))
                tap = _backward(source, tap)
                found.setdefault(tap.node, tap)
        return tuple(found.values())

    def _users(self, places: tuple[Place, ...]) -> Iterator[tuple[Node, Place]]:
        by_tensor: dict[str, list[Place]] = {}
        for place in places:
            by_tensor.setdefault(place.tensor, []).append(place)
        for node in self.nodes:
            for place in by_tensor.get(self.weight_of(node) or "", ()):
                yield node, place

    def weight_of(self, node: Node) -> str | None:
        """Return the structure's name of the weight that a convolution or linear node multiplies with."""
        if node.op != "call_function" or not is_layer(node) or not isinstance(node.args[1], Node):
            return None
        return self._names.get(self.state_of.get(node.args[1].name, ""))

    def _forward(self, node: Node, tap: Tap) -> tuple[Node, Tap]:
        while len(node.users) == 1:
            user = next(iter(node.users))
            if user.op != "call_function" or not self._carries(node, user):
                break
            node, tap = user, Tap(user.name, tap.axis, tap.indices)
        return node, tap

    def _carries(self, node: Node, user: Node) -> bool:
        others = [a for a in user.all_input_nodes if a is not node and self.tensor(a) is None]
        if others or not _shape(user):
            return False
        depthwise = operator_name(user).startswith("conv") and _is_depthwise(user)
        if depthwise:
            return user.args[0] is node and _shape(user)[1] == _shape(node)[1]
        return _shape(user) == _shape(node) and (operator_name(user) in _CARRIES or _is_pointwise(user))


class _Run(torch.fx.Interpreter):
    def __init__(
        self, module: torch.fx.GraphModule, see: Callable[[Node, Any], Any], without: Collection[Node]
    ) -> None:
        super().__init__(module)
        self._see = see
        self._without = without

    def run_node(self, n: Node) -> Any:
        result = None if n in self._without else super().run_node(n)
        return self._see(n, result) if n.op == "call_function" else result


def operator_name(node: Node) -> str:
    """Return the name of a node's operator, as rules call it ('conv2d')."""
    return tracer.operator_name(node.target)


def is_layer(node: Node) -> bool:
    """Say whether a node is a convolution or linear operator."""
    name = operator_name(node)
    return name == "linear" or name.startswith(("conv1d", "conv2d", "conv3d", "conv_transpose"))


def _scales_maps(node: Node) -> bool:
    """Whether all that a result is for is to be multiplied with something larger."""
    return all(operator_name(u) == "mul" and _shape(u) != _shape(node) for u in node.users)


def _is_pointwise(node: Node) -> bool:
    return torch.Tag.pointwise in getattr(node.target, "tags", ())


def _is_depthwise(node: Node) -> bool:
    source, weight = node.args[0], node.args[1]
    if operator_name(node).startswith("conv_transpose"):
        return False
    return _shape(weight)[1] == 1 and _shape(source)[1] == _shape(weight)[0] and _shape(weight)[0] > 1


def _shape(node: Any) -> tuple[int, ...]:
    held = node.meta.get("val") if isinstance(node, Node) else None
    return tuple(int(n) for n in held.shape) if isinstance(held, Tensor) else ()


def _channel_axis(node: Node, of: Node | None = None) -> int:
    return len(_shape(of or node)) - 1 if operator_name(node) == "linear" else 1


def _over_groups(indices_CM: IntArray, reader: Node, source: Node, axis: int) -> IntArray:
    """A grouped convolution's weight counts the inputs of one group; a unit is at that place in all of them."""
    if operator_name(reader) == "linear" or operator_name(reader).startswith("conv_transpose"):
        return indices_CM
    inner, whole = _shape(reader.args[1])[1], _shape(source)[axis]
    return np.concatenate([indices_CM + start for start in range(0, whole, inner)], axis=1)


def _backward(node: Node, tap: Tap) -> Tap:
    """Go back through pooling and flattening for as long as every unit has an index of its own."""
    while isinstance(source := node.args[0] if node.args else None, Node) and _shape(source):
        before = _before(node, source, tap)
        if before is None:
            break
        node, tap = source, before
    return tap


def _before(node: Node, source: Node, tap: Tap) -> Tap | None:
    name, now, was = operator_name(node), _shape(node), _shape(source)
    if len(was) < 2 or tap.axis >= len(was) or was[:1] != now[:1]:
        return None
    if name.startswith(_POOLS) and tap.axis == 1 and len(now) > 1 and now[1] == was[1]:
        return Tap(source.name, 1, tap.indices)
    if name in _MERGES and tap.axis == 1 and len(now) == 2 and now[1] == int(np.prod(was[1:])):
        block = now[1] // was[1]
        channels = tap.indices // block
        width = tap.indices.shape[1] // block
        if width * block == tap.indices.shape[1] and _are_blocks(channels, block):
            return Tap(source.name, 1, channels[:, ::block])
    return None


def _are_blocks(channels_CM: IntArray, block: int) -> bool:
    """Whether each row has its channels in succession, every one of them `block` times."""
    return bool((channels_CM.reshape(len(channels_CM), -1, block) == channels_CM[:, ::block, None]).all())
