"""The parts of a search space: a tree that mirrors the recipe and draws plain data from an Optuna trial.

Every node can also say which draws give a value (`encode`), so that known recipes become points of the space that the
sampler learns from. Names of dimensions are paths: `allocation`, `allocation.per_group.keep_fraction[layer1.conv1]`.
"""

from __future__ import annotations

import fnmatch
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

from autoprune import rooms
from autoprune.errors import BadRecipe
from autoprune.fields import PerItem

Draws = dict[str, Any]


class Drawer(Protocol):
    """What a space asks of an Optuna trial."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


class Named(Protocol):
    """A group or layer, as far as a space looks at it."""

    @property
    def name(self) -> str: ...


class Items(Protocol):
    """What a space needs of a Structure: the groups, layers and stages (by group) that have a dimension each."""

    @property
    def groups(self) -> Sequence[Named]: ...

    @property
    def layers(self) -> Sequence[Any]: ...

    @property
    def stages(self) -> Mapping[str, str]: ...


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One number or choice that the sampler draws. `choices` is empty for ranges."""

    name: str
    kind: Literal["real", "integer", "choice"]
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[Any, ...] = ()


class Node(ABC):
    """A place in a recipe."""

    @abstractmethod
    def draw(self, trial: Drawer, items: Items) -> Any:
        """Return plain data for this place."""

    @abstractmethod
    def encode(self, value: Any, items: Items) -> Draws | None:
        """Return the draws that give this value, or None when the space does not hold it."""

    @abstractmethod
    def dimensions(self, items: Items) -> Iterator[Dimension]:
        """Yield every dimension, conditional ones too. Raises BadRecipe for a key that matches no group or layer."""

    def methods(self) -> Iterator[tuple[str, str]]:
        """Yield (room, name) of every method that can be chosen here."""
        yield from ()


@dataclass(frozen=True)
class Fixed(Node):
    """One value."""

    value: Any

    def draw(self, trial: Drawer, items: Items) -> Any:
        return self.value

    def encode(self, value: Any, items: Items) -> Draws | None:
        return {} if _same(value, self.value) else None

    def dimensions(self, items: Items) -> Iterator[Dimension]:
        yield from ()


@dataclass(frozen=True, kw_only=True)
class Range(Node):
    """A closed interval of numbers."""

    path: str
    low: float
    high: float
    log: bool
    step: float | None
    whole: bool

    def draw(self, trial: Drawer, items: Items) -> Any:
        if self.whole:
            step = 1 if self.step is None else int(self.step)
            return trial.suggest_int(self.path, int(self.low), int(self.high), step=step, log=self.log)
        return trial.suggest_float(self.path, self.low, self.high, step=self.step, log=self.log)

    def encode(self, value: Any, items: Items) -> Draws | None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not self.low <= value <= self.high:
            return None
        on_grid = self.step is None or math.isclose((value - self.low) % self.step, 0.0, abs_tol=1e-9)
        return {self.path: value} if on_grid else None

    def dimensions(self, items: Items) -> Iterator[Dimension]:
        kind: Literal["integer", "real"] = "integer" if self.whole else "real"
        yield Dimension(name=self.path, kind=kind, low=self.low, high=self.high, log=self.log)


@dataclass(frozen=True)
class Choose(Node):
    """One of several sub-spaces, by label; the dimensions of those not chosen are not drawn."""

    path: str
    options: Mapping[Any, Node]

    def draw(self, trial: Drawer, items: Items) -> Any:
        label = trial.suggest_categorical(self.path, list(self.options))
        return self.options[label].draw(trial, items)

    def encode(self, value: Any, items: Items) -> Draws | None:
        for label, node in self.options.items():
            inner = node.encode(value, items)
            if inner is not None:
                return {self.path: label} | inner
        return None

    def dimensions(self, items: Items) -> Iterator[Dimension]:
        yield Dimension(name=self.path, kind="choice", choices=tuple(self.options))
        for node in self.options.values():
            yield from node.dimensions(items)

    def methods(self) -> Iterator[tuple[str, str]]:
        for node in self.options.values():
            yield from node.methods()


@dataclass(frozen=True)
class Part(Node):
    """A method with a node for each of its hyperparameters."""

    room: str
    name: str
    parameters: Mapping[str, Node]

    def draw(self, trial: Drawer, items: Items) -> Any:
        return {"name": self.name} | {k: node.draw(trial, items) for k, node in self.parameters.items()}

    def encode(self, value: Any, items: Items) -> Draws | None:
        if not isinstance(value, Mapping) or value.get("name") != self.name:
            return None
        draws: Draws = {}
        for key, node in self.parameters.items():
            inner = node.encode(value[key], items)
            if inner is None:
                return None
            draws |= inner
        return draws

    def dimensions(self, items: Items) -> Iterator[Dimension]:
        for node in self.parameters.values():
            yield from node.dimensions(items)

    def methods(self) -> Iterator[tuple[str, str]]:
        yield self.room, self.name


@dataclass(frozen=True)
class Each(Node):
    """A list; entries that draw null are left out."""

    entries: tuple[Node, ...]

    def draw(self, trial: Drawer, items: Items) -> Any:
        drawn = [node.draw(trial, items) for node in self.entries]
        return [value for value in drawn if value is not None]

    def encode(self, value: Any, items: Items) -> Draws | None:
        left, draws = list(value), Draws()
        for node in self.entries:
            inner = node.encode(left[0], items) if left else None
            if inner is not None:
                left.pop(0)
            else:
                inner = node.encode(None, items)
            if inner is None:
                return None
            draws |= inner
        return None if left else draws

    def dimensions(self, items: Items) -> Iterator[Dimension]:
        for node in self.entries:
            yield from node.dimensions(items)

    def methods(self) -> Iterator[tuple[str, str]]:
        for node in self.entries:
            yield from node.methods()


@dataclass(frozen=True, kw_only=True)
class ForEach(Node):
    """One node per group, layer or stage. `nodes` maps name or glob to a node whose path has `{}` for the name."""

    path: str
    room: str
    method: str
    declared: PerItem
    nodes: Mapping[str, Range | Choose | Fixed]

    def draw(self, trial: Drawer, items: Items) -> Any:
        return {name: node.draw(trial, items) for name, node in self._expanded(items).items()}

    def encode(self, value: Any, items: Items) -> Draws | None:
        names, draws = self._names(items), Draws()
        try:
            wanted = self.declared.resolve(self.path, value, names)
        except BadRecipe:
            return None
        expanded = self._expanded(items)
        for name in names:
            inner = expanded.get(name, Fixed(self.declared.unmatched)).encode(wanted[name], items)
            if inner is None:
                return None
            draws |= inner
        return draws

    def dimensions(self, items: Items) -> Iterator[Dimension]:
        names = self._names(items)
        for key in self.nodes:
            if not fnmatch.filter(names, key) and key not in names and key != "*":
                shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
                raise BadRecipe(f"{self.path}: no {self.declared.of} matches {key!r}; there are {shown}")
        for node in self._expanded(items).values():
            yield from node.dimensions(items)

    def _expanded(self, items: Items) -> dict[str, Node]:
        found: dict[str, Node] = {}
        for name in self._names(items):
            key = name if name in self.nodes else self._glob(name)
            if key is not None:
                found[name] = _at(self.nodes[key], f"{self.path}[{name}]")
        return found

    def _glob(self, name: str) -> str | None:
        return next((key for key in self.nodes if fnmatch.fnmatchcase(name, key)), None)

    def _names(self, items: Items) -> list[str]:
        if self.declared.of == "group":
            return [group.name for group in items.groups]
        if self.declared.of == "stage":
            return list(dict.fromkeys(items.stages.values()))
        method = rooms.build(self.room, self.method)
        eligible = cast(Any, method).rank_fractions(items.layers)
        return list(eligible)


def _at(node: Range | Choose | Fixed, path: str) -> Node:
    if isinstance(node, Range):
        return Range(path=path, low=node.low, high=node.high, log=node.log, step=node.step, whole=node.whole)
    return Choose(path, node.options) if isinstance(node, Choose) else node


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, (int, float)) and not isinstance(b, bool):
        return math.isclose(a, b, rel_tol=1e-12)
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)
