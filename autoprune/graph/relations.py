"""What the rules write down while the graph is walked: labels, roles of tensor axes, costs and size
attributes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from torch import nn

from autoprune.graph.labels import Axis, IntArray, Labels, Value, Why
from autoprune.graph.parts import Call, Part, Product, Role, SizeAttribute, View

Key = tuple[str, int]
"""Name of a parameter, buffer or counter, and its axis."""


@dataclass(frozen=True, eq=False)
class Origin:
    """The layer whose weight rows (n,) an activation consists of, moved about but not changed."""

    weight: Value
    bias: Value | None
    rows: IntArray


@dataclass(frozen=True, eq=False)
class Rescaling:
    """Rows of a layer to multiply by sqrt(kept / size) of these labels when they are cut."""

    origin: Origin
    labels: IntArray


@dataclass(frozen=True, eq=False)
class Operation:
    """One call of an operator: its name ('conv2d', without overload and in-place mark), place and bound
    arguments. of: name of the operator that computed the first argument."""

    name: str
    target: str
    module: str
    scopes: tuple[str, ...]
    arguments: Mapping[str, object]
    shapes: tuple[tuple[int, ...], ...]
    pointwise: bool = False
    origin: Origin | None = None
    unused: bool = False
    of: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first result."""
        return self.shapes[0]

    def why(self, reason: str) -> Why:
        """A lock reason that names this operator and its module."""
        return Why(self.target, self.module, reason)

    def value(self, name: str) -> Value:
        """The tensor argument of that name."""
        found = self.arguments[name]
        assert isinstance(found, Value), f"{self.target}: argument {name} is no tensor"
        return found

    def optional(self, name: str) -> Value | None:
        """The tensor argument of that name, or None when it was left out."""
        found = self.arguments.get(name)
        return found if isinstance(found, Value) else None

    def ints(self, name: str) -> tuple[int, ...]:
        """A list-of-int argument; a single int becomes a tuple of one, None an empty tuple."""
        found = self.arguments.get(name)
        if found is None:
            return ()
        if isinstance(found, int):
            return (found,)
        return tuple(int(item) for item in cast("list[int]", found))

    def integer(self, name: str) -> int:
        """An int argument."""
        return int(cast(int, self.arguments[name]))

    def values(self) -> list[Value]:
        """All tensor arguments, lists flattened, in order."""
        found: list[Value] = []
        for argument in self.arguments.values():
            items = argument if isinstance(argument, list | tuple) else [argument]
            found.extend(item for item in items if isinstance(item, Value))
        return found


@dataclass(frozen=True)
class Reading:
    """How one operator reads one weight: for layers and cost."""

    operator: str
    module: str
    call: Call
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


@dataclass
class Relations:
    """Everything the rules know. `owners` maps a tensor to the paths of all modules that hold it."""

    modules: Mapping[str, nn.Module]
    owners: Mapping[str, tuple[str, ...]]
    batch: int = 1
    labels: Labels = field(default_factory=Labels)
    roles: dict[Key, Role] = field(default_factory=dict)
    flops: dict[str, float] = field(default_factory=dict)
    readings: dict[str, list[Reading]] = field(default_factory=dict)
    attributes: dict[tuple[str, str], SizeAttribute] = field(default_factory=dict)
    counters: dict[str, IntArray] = field(default_factory=dict)
    counted_in: dict[str, str] = field(default_factory=dict)
    products: list[Product] = field(default_factory=list)
    views: dict[View, None] = field(default_factory=dict)
    parts: dict[Part, None] = field(default_factory=dict)
    kinds: list[tuple[IntArray, str]] = field(default_factory=list)
    rescalings: dict[tuple[str, bytes], Rescaling] = field(default_factory=dict)
    hints: list[tuple[IntArray, Why]] = field(default_factory=list)
    opaque: dict[str, tuple[int, Why]] = field(default_factory=dict)
    unsupported: dict[str, None] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)
    state: Mapping[str, Value] = field(default_factory=dict)
    means: dict[tuple[str, int, int], Axis] = field(default_factory=dict)
    responses: dict[tuple[str, int, int], IntArray] = field(default_factory=dict)
    packed: dict[str, IntArray] = field(default_factory=dict)
    counting: bool = True

    def tie(self, first: Axis, second: Axis, op: Operation, reason: str) -> Axis:
        """Tie two axes of one operation."""
        return self.labels.tie(first, second, op.why(reason))

    def lock_all(self, value: Value, why: Why) -> None:
        """Lock every axis of a tensor."""
        for axis in value.axes:
            self.labels.lock(axis, why)

    def part_of(self, value: Value | None) -> Value | None:
        """The parameter that this value is some rows of, along axis 0 and with all else as it is."""
        if value is None or value.source is not None or not value.axes or value.axes[0] is None:
            return None
        for whole in self.state.values():
            rows = whole.axes[0] if len(whole.shape) == len(value.shape) else None
            if rows is not None and rows[0] <= value.axes[0][0] <= rows[-1]:
                same = (_same(a, b) for a, b in zip(value.axes[1:], whole.axes[1:], strict=True))
                return whole if np.isin(value.axes[0], rows).all() and all(same) else None
        return None

    def computed(self, weight: Value, out_axis: int, op: Operation) -> None:
        """Lock a weight that is no parameter itself, and note the layer as one that nobody can cut."""
        why = op.why("the weight is computed in the forward pass")
        self.lock_all(weight, why)
        self.opaque.setdefault(op.module or op.target, (weight.shape[out_axis], why))

    def unknown(self, op: Operation) -> None:
        """Lock all that an operator without a rule touches, and note the parameters that it reads itself."""
        why = op.why("no rule for this operator")
        for value in op.values():
            if any(axis is not None for axis in value.axes):
                self.unsupported.setdefault(op.target)
            self.lock_all(value, why)
            if value.source is not None and len(value.shape) > 1 and isinstance(self.parameter(value), nn.Parameter):
                self.opaque.setdefault(value.source, (value.shape[0], why))

    def weight(self, value: Value, out_axis: int, in_axis: int) -> None:
        """Note the roles of a parameter that is multiplied with an activation."""
        if value.source is not None and isinstance(self.parameter(value), nn.Parameter):
            self.role(value, out_axis, Role.OUTPUT)
            self.role(value, in_axis, Role.INPUT)

    def parameter(self, value: Value) -> object:
        """The tensor behind a value that is one of the state."""
        assert value.source is not None
        leaf = value.source.rpartition(".")[2]
        return getattr(self.modules[self.owners[value.source][0]], leaf, None)

    def role(self, value: Value | None, axis: int, role: Role) -> None:
        """Note what an axis of a parameter is for. A producer stays one, even if the tensor is also read
        otherwise."""
        if value is None or value.source is None:
            return
        key = (value.source, axis)
        held = self.roles.get(key)
        if held is None or (role is Role.OUTPUT and held is not Role.OUTPUT):
            # Inserted anew, so that the order is that of the first producing use.
            self.roles.pop(key, None)
            self.roles[key] = role

    def size(self, value: Value | None, axis: int, attribute: str, multiply: int = 1, divide: int = 1) -> None:
        """Note that `attribute` of the modules that hold this tensor counts the kept indices of that axis."""
        if value is None or value.source is None:
            return
        for module in self.owners.get(value.source, ()):
            self.count(
                module,
                attribute,
                (value.source, axis),
                value.shape[axis] * multiply // divide,
                multiply,
                divide,
            )

    def count(self, module: str, attribute: str, key: Key, now: int, multiply: int = 1, divide: int = 1) -> None:
        """Note one size attribute, if the module has it with the value it should have now."""
        held = getattr(self.modules.get(module), attribute, None)
        if isinstance(held, int) and not isinstance(held, bool) and held == now:
            self.attributes.setdefault(
                (module, attribute), SizeAttribute(module, attribute, key[0], key[1], multiply, divide)
            )

    def counter(self, module: str, attribute: str, labels: IntArray, op: Operation, nearer: bool = False) -> None:
        """Let an int attribute of a module count labels that are no axis of any parameter.

        nearer: a module inside this one has a size of its own for these labels. Where several do, as the layers of
        nn.Transformer have their heads, no number of the outer one speaks for all of them: it stays as it is.
        """
        name = f"{module}:{attribute}"
        if name not in self.counters:
            self.counters[name], self.counted_in[name] = labels, op.module
            self.count(module, attribute, (name, 0), len(labels))
        elif nearer and op.module != self.counted_in[name]:
            self.attributes.pop((module, attribute), None)
        else:
            self.tie(self.counters[name], labels, op, f"{name} is used by two calls")

    def product(self, op: Operation, sizes: tuple[int, ...], axes: tuple[Axis, ...]) -> None:
        """Add a product of activations: its FLOPs are 2 * the product of all sizes, those with labels as they
        are kept."""
        if not self.counting or all(axis is None for axis in axes):
            return
        fixed = math.prod(size for size, axis in zip(sizes, axes, strict=True) if axis is None)
        counted = tuple((self.counted(axis), len(axis)) for axis in axes if axis is not None)
        self.products.append(Product(2.0 * fixed / self.batch, counted, op.module))

    def counted(self, labels: IntArray) -> str:
        """Name of a counter for these labels, for costs, scales and views."""
        name = "#" + hashlib.sha256(labels.tobytes()).hexdigest()[:16]
        self.counters.setdefault(name, labels)
        return name

    def view(self, module: str, result: Value) -> None:
        """Note the sizes that a view in the code of a module asks for."""
        axes = tuple(
            (i, len(labels), self.counted(labels)) for i, labels in enumerate(result.axes) if labels is not None
        )
        self.views.setdefault(View(module, len(result.shape), axes))

    def part(self, op: Operation, value: Value, axis: int, start: int, stop: int) -> None:
        """Note a range of an axis that stands as numbers in the code of a module."""
        labels = value.axes[axis]
        if labels is None or stop - start >= len(labels):
            return
        self.hints.append((labels, op.why("Python code splits these channels at fixed numbers")))
        pieces = (labels[:start], labels[start:stop], labels[stop:])
        lengths = tuple((len(piece), self.counted(piece) if len(piece) else "") for piece in pieces)
        self.parts.setdefault(Part(op.module, len(value.shape), axis, lengths))

    def rescale(self, query: Value, op: Operation) -> None:
        """Attention divides by the root of the width of its queries: after a cut the layer that computes the
        queries takes the difference; where none can, the width stays."""
        width = query.axes[-1]
        if width is None:
            return
        if op.origin is None or op.origin.weight.source is None:
            self.labels.lock(width, op.why("the attention scale follows from these dimensions"))
            return
        if op.origin.bias is not None and op.origin.bias.source is None:
            self.labels.lock(width, op.why("the attention scale follows from these dimensions, and a computed bias"))
            return
        key = (op.origin.weight.source, op.origin.rows.tobytes())
        self.rescalings.setdefault(key, Rescaling(op.origin, width))

    def reads(self, weight: Value, reading: Reading, positions: float) -> None:
        """Add one use of a weight: its FLOPs are 2 * positions * number of weight elements, per sample."""
        assert weight.source is not None
        if self.counting:
            self.flops[weight.source] = self.flops.get(weight.source, 0.0) + 2.0 * positions
            self.readings.setdefault(weight.source, []).append(reading)


def _same(first: Axis, second: Axis) -> bool:
    return first is not None and second is not None and np.array_equal(first, second)
