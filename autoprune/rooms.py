"""Rooms: folders of interchangeable methods. The folder is the registry.

`criteria/l1_norm.py` is the method `l1_norm` of the room `criteria`. The file holds exactly one public class derived
from the room's base class; files beginning with `_` are helpers. Packages outside may add methods through entry points
of the group `autoprune.<room>`. A method is imported only when it is asked for.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import inspect
import pkgutil
from collections.abc import Mapping
from typing import Any, ClassVar, cast

from autoprune.errors import AutopruneError, BadRecipe, unknown_name
from autoprune.fields import hyperparameters

ROOMS: Mapping[str, str] = {
    "criteria": "Criterion",
    "allocation": "Allocation",
    "schedules": "Schedule",
    "regularisers": "Regulariser",
    "lowrank": "LowRank",
    "sparsity": "Sparsity",
    "depth": "DepthCriterion",
    "replacement": "Replacement",
    "recovery": "Recovery",
    "quantisation": "Quantisation",
}
"""Room to the name of its base class, which `autoprune.<room>` exports."""


class Method:
    """Base of the rooms' base classes: a frozen dataclass whose fields are declared hyperparameters.

    Raises BadRecipe when a value is outside its declared range.
    """

    room: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    """Kinds of evidence (`autoprune.evidence.Evidence`) that the method looks at."""

    def __post_init__(self) -> None:
        for name, declared in hyperparameters(self).items():
            value = declared.check(f"{type(self).__name__}.{name}", getattr(self, name))
            object.__setattr__(self, name, value)

    @property
    def name(self) -> str:
        """The name of the method's file, by which recipes call it."""
        return type(self).__module__.rpartition(".")[2]

    def config(self) -> dict[str, Any]:
        """Return the method as plain data, with every hyperparameter spelled out."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(cast(Any, self))}
        return {"name": self.name} | {k: _plain(v) for k, v in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


@functools.cache
def names(room: str) -> tuple[str, ...]:
    """Return the names of all methods of a room, sorted. Raises UnknownName for an unknown room."""
    return tuple(sorted(_own(room) | set(_outside(room))))


def method_class(room: str, name: str) -> type[Method]:
    """Return the class of one method. Raises UnknownName with the nearest name."""
    if name not in names(room):
        raise unknown_name(f"{room} method", name, names(room))
    if name in _own(room):
        return _only_class(room, f"autoprune.{room}.{name}")
    found = _outside(room)[name].load()
    if not (inspect.isclass(found) and issubclass(found, base_class(room))):
        raise AutopruneError(f"entry point {name!r} of autoprune.{room} is no {ROOMS[room]}: {found!r}")
    return found


def build(room: str, config: str | Mapping[str, Any], where: str = "") -> Method:
    """Make a method from its name, or from a mapping of `name` and hyperparameters.

    `where` is the place in the user's file, for messages. Raises BadRecipe or UnknownName.
    """
    given = {"name": config} if isinstance(config, str) else config
    place = where or room
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        raise BadRecipe(f"{place} must be a method's name or a mapping with the key 'name', got {config!r}")
    made = method_class(room, given["name"])
    values = {str(k): v for k, v in given.items() if k != "name"}
    known = hyperparameters(made)
    for key in values:
        if key not in known:
            allowed = ", ".join(known) or "none"
            raise BadRecipe(f"{place}: {given['name']} has no hyperparameter {key!r}; it has: {allowed}")
    return made(**values)


def base_class(room: str) -> type[Method]:
    """Return the room's base class. Raises UnknownName for an unknown room."""
    if room not in ROOMS:
        raise unknown_name("room", room, ROOMS)
    return cast("type[Method]", getattr(importlib.import_module(f"autoprune.{room}"), ROOMS[room]))


def _own(room: str) -> set[str]:
    if room not in ROOMS:
        raise unknown_name("room", room, ROOMS)
    package = importlib.import_module(f"autoprune.{room}")
    return {m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")}


@functools.cache
def _outside(room: str) -> Mapping[str, importlib.metadata.EntryPoint]:
    found: dict[str, importlib.metadata.EntryPoint] = {}
    for entry in importlib.metadata.entry_points(group=f"autoprune.{room}"):
        if entry.name in found or entry.name in _own(room):
            raise AutopruneError(f"two methods named {entry.name!r} in room {room}; one is {entry.value}")
        found[entry.name] = entry
    return found


def _only_class(room: str, module_name: str) -> type[Method]:
    module = importlib.import_module(module_name)
    base = base_class(room)
    found = [
        c
        for c in vars(module).values()
        if inspect.isclass(c) and issubclass(c, base) and c.__module__ == module_name and c.__name__[0] != "_"
    ]
    if len(found) != 1:
        raise AutopruneError(f"{module_name} must hold exactly one public {base.__name__}, found {found}")
    return found[0]
