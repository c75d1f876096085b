"""Search spaces: which recipes a study may try.

A space is YAML that mirrors the recipe. At every place stands one of

    a value                              fixed
    search                               the range worth searching that the hyperparameter declares;
                                         for a part of the recipe: every method of its room
    {low: .., high: .., log: .., step: ..}   a range
    {choose: [.., ..]}                   one of these; entries for a part may have searched hyperparameters themselves

Hyperparameters that have a value per group or layer become one dimension each; a mapping from names or globs to any of
the above treats them apart, and a range with `shared: true` is one dimension, whose number all of them have. A space
may also be a function, `package.module:function(trial) -> Recipe`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, get_args

from autoprune import imports, rooms, shipped
from autoprune.errors import BadInput, BadRecipe, NothingToDo, unknown_name
from autoprune.fields import Choice, Hyperparameter, Integer, PerItem, Real, hyperparameters
from autoprune.normalisation import Normalisation
from autoprune.recipe import Recipe, read_yaml
from autoprune.search.nodes import (
    Choose,
    Dimension,
    Drawer,
    Each,
    Fixed,
    ForEach,
    Items,
    Node,
    Part,
    Range,
)

_ROOM_OF = {
    "criterion": "criteria",
    "allocation": "allocation",
    "schedule": "schedules",
    "regulariser": "regularisers",
    "replacement": "replacement",
    "low_rank": "lowrank",
    "sparsity": "sparsity",
    "depth": "depth",
    "quantisation": "quantisation",
}
_MAY_BE_NULL = frozenset({"criterion", "regulariser", "replacement", "low_rank", "sparsity", "depth", "quantisation"})
_NORMALISATION = Choice(
    default="mean",
    options=get_args(Normalisation),
    search=get_args(Normalisation),
    help="scale of each group's scores",
)
_START = Choice(
    default="base", options=("base", "fresh"), search=("base",), help="the base model's weights, or new ones"
)
_MIN_KEEP = Real(default=0.05, valid=(0, 1), search=(0.02, 0.3), log=True, help="least share of a group that stays")
_FROM_STUDY = {
    "target": "the study's `targets` say what recipes are repaired to",
    "epochs": "the study's `rungs` say how long trials train",
}
_RANGE_KEYS = frozenset({"low", "high", "log", "step"})
_SHARED = "shared"
_PROBES = 32


class Space(Protocol):
    """Where recipes come from. Their targets are set by the study."""

    def suggest(self, trial: Drawer, items: Items) -> Recipe:
        """Draw a recipe. Raises BadRecipe."""

    def encode(self, recipe: Recipe, items: Items) -> dict[str, Any] | None:
        """Return the draws that give this recipe, or None when the space does not hold it."""

    def dimensions(self, items: Items) -> tuple[Dimension, ...]:
        """Return every dimension for a structure, conditional ones too; empty when that is not known."""

    def methods(self) -> tuple[tuple[str, str], ...]:
        """Return (room, name) of all methods that can be chosen; empty when that is not known."""

    def check(self, items: Items) -> None:
        """Check the space against a structure. Raises BadRecipe."""


@dataclass(frozen=True)
class TreeSpace:
    """A space read from YAML."""

    where: str
    fields: Mapping[str, Node]

    def suggest(self, trial: Drawer, items: Items) -> Recipe:
        """Draw a recipe."""
        return Recipe.parse({key: node.draw(trial, items) for key, node in self.fields.items()}, self.where)

    def encode(self, recipe: Recipe, items: Items) -> dict[str, Any] | None:
        """Return the draws that give this recipe, or None when the space does not hold it."""
        plain, draws = recipe.plain(), dict[str, Any]()
        for key, node in self.fields.items():
            inner = {} if key == "preset" else node.encode(plain[key], items)
            if inner is None:
                return None
            draws |= inner
        return draws

    def dimensions(self, items: Items) -> tuple[Dimension, ...]:
        """Return every dimension, conditional ones too; one that several branches share is there once.

        Raises BadRecipe when branches give one name different ranges: Optuna knows a dimension by its name.
        """
        found: dict[str, Dimension] = {}
        for dimension in (d for node in self.fields.values() for d in node.dimensions(items)):
            if found.setdefault(dimension.name, dimension) != dimension:
                raise BadRecipe(f"{self.where}: {dimension.name} has two different ranges; give it the same everywhere")
        return tuple(found.values())

    def methods(self) -> tuple[tuple[str, str], ...]:
        """Return (room, name) of all methods that can be chosen, sorted."""
        return tuple(sorted({found for node in self.fields.values() for found in node.methods()}))

    def check(self, items: Items) -> None:
        """Check names of groups and layers, and that what is drawn makes valid recipes.

        Some draws may come to nothing at all; a space in which all do is refused.
        """
        self.dimensions(items)
        empty = list[NothingToDo]()
        for seed in range(_PROBES):
            try:
                self.suggest(_Probe(random.Random(seed)), items)
            except NothingToDo as error:
                empty.append(error)
        if len(empty) == _PROBES:
            raise empty[0]


@dataclass(frozen=True)
class FunctionSpace:
    """A user's function from an Optuna trial to a recipe."""

    reference: str
    function: Callable[[Any], Any]

    def suggest(self, trial: Drawer, items: Items) -> Recipe:
        """Call the function. Raises BadRecipe when it returns anything but a recipe."""
        made = self.function(trial)
        if not isinstance(made, (Recipe, Mapping)):
            raise BadRecipe(f"search space {self.reference} must return a Recipe, got {type(made).__name__}")
        return Recipe.parse(made, f"search space {self.reference}")

    def encode(self, recipe: Recipe, items: Items) -> dict[str, Any] | None:
        """Return None: a function cannot be asked which draws lead to a recipe."""
        return None

    def dimensions(self, items: Items) -> tuple[Dimension, ...]:
        """Return nothing: they are known only when the function runs."""
        return ()

    def methods(self) -> tuple[tuple[str, str], ...]:
        """Return nothing: they are known only when the function runs."""
        return ()

    def check(self, items: Items) -> None:
        """Do nothing: the function may look at the trial in any way."""


def load_space(given: str | Mapping[str, Any]) -> Space:
    """Return the space of a name, a path, plain data or `package.module:function`.

    Raises BadRecipe that names the place, UnknownName or BadInput.
    """
    if isinstance(given, str) and imports.is_reference(given):
        return FunctionSpace(given, imports.resolve(given, "search_space"))
    document, where = read_space(given)
    return parse_space(document, where)


def read_space(given: str | Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return a space as plain data, and what to call it in messages."""
    if isinstance(given, Mapping):
        return dict(given), "search_space"
    path = shipped.find("search_spaces", given)
    return _read_file(path), f"search space {path}"


def parse_space(document: Mapping[str, Any], where: str) -> TreeSpace:
    """Read a space from plain data. Raises BadRecipe."""
    for key in document:
        if key in _FROM_STUDY:
            raise BadRecipe(f"{where}: {key} is no part of a search space; {_FROM_STUDY[key]}")
        if key not in Recipe.model_fields:
            known = [name for name in Recipe.model_fields if name not in _FROM_STUDY]
            raise BadRecipe(f"{where}: {unknown_name('part of a recipe', str(key), known)}")
    return TreeSpace(where, {key: _field(key, spec, where) for key, spec in document.items()})


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return read_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"search space file {path} cannot be read: {error}") from error


def _field(key: str, spec: Any, where: str) -> Node:
    if key in _ROOM_OF:
        return _part(_Place(where, key), _ROOM_OF[key], spec, may_be_null=key in _MAY_BE_NULL)
    if key == "recovery":
        return _recovery(_Place(where, key), spec)
    if key == "normalisation":
        return _leaf(_Place(where, key), _NORMALISATION, spec)
    if key == "start":
        return _leaf(_Place(where, key), _START, spec)
    if key == "min_keep_fraction":
        return _leaf(_Place(where, key), _MIN_KEEP, spec)
    return Fixed(spec)


@dataclass(frozen=True)
class _Place:
    """Where we are: the file, for messages, and the path in the recipe, which names dimensions."""

    where: str
    path: str

    def __str__(self) -> str:
        return f"{self.where}: {self.path}"

    def inside(self, name: str) -> _Place:
        return _Place(self.where, f"{self.path}.{name}")

    def at(self, name: object) -> _Place:
        return _Place(self.where, f"{self.path}[{name}]")


def _part(place: _Place, room: str, spec: Any, *, may_be_null: bool, label: str | None = None) -> Node:
    if spec is None and may_be_null:
        return Fixed(None)
    if spec == "search":
        spec = {"choose": [_all_searched(room, name) for name in rooms.names(room)]}
    if isinstance(spec, Mapping) and "choose" in spec:
        entries = _entries(place, spec)
        labels = _labels([_part_label(entry) for entry in entries])
        made = {
            name: _part(place, room, entry, may_be_null=may_be_null, label=name)
            for name, entry in zip(labels, entries, strict=True)
        }
        return Choose(place.path, made)
    return _method(place, room, spec, label)


def _method(place: _Place, room: str, spec: Any, label: str | None) -> Part:
    given = {"name": spec} if isinstance(spec, str) else spec
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        raise BadRecipe(
            f"{place} must be a method's name, a mapping with the key 'name', 'search' or {{choose: [...]}}, "
            f"got {spec!r}"
        )
    name = given["name"]
    try:
        known = hyperparameters(rooms.method_class(room, name))
    except BadInput as error:
        raise type(error)(f"{place}: {error}") from error
    for key in given:
        if key != "name" and key not in known:
            raise BadRecipe(f"{place}: {name} has no hyperparameter {key!r}; it has: {', '.join(known) or 'none'}")
    inside = place.inside(label or name)
    nodes = {
        key: _hyperparameter(inside.inside(key), declared, given.get(key, declared.default), room, name)
        for key, declared in known.items()
    }
    return Part(room, name, nodes)


def _hyperparameter(place: _Place, declared: Hyperparameter, spec: Any, room: str, method: str) -> Node:
    if not isinstance(declared, PerItem):
        return _leaf(place, declared, spec)
    if isinstance(spec, Mapping) and spec.get(_SHARED) is True:  # a mapping below a module `shared` is not that
        return _leaf(place, declared.value, {key: value for key, value in spec.items() if key != _SHARED})
    if isinstance(spec, Mapping) and not _is_leaf(spec):
        nodes = {str(key): _leaf(place.at(key), declared.value, inner) for key, inner in spec.items()}
    elif spec == "search" or isinstance(spec, Mapping):
        nodes = {"*": _leaf(place, declared.value, spec)}
    else:
        return _fixed(place, declared, spec)
    return ForEach(path=place.path, room=room, method=method, declared=declared, nodes=nodes)


def _leaf(place: _Place, declared: Real | Integer | Choice, spec: Any) -> Range | Choose | Fixed:
    if spec == "search":
        return _searched(place, declared)
    if not isinstance(spec, Mapping):
        return _fixed(place, declared, spec)
    if "choose" in spec:
        return _options(place, [_check(place, declared, entry) for entry in _entries(place, spec)])
    if isinstance(declared, Choice):
        raise BadRecipe(f"{place} is {declared.allowed()}; write one of them, 'search' or {{choose: [...]}}")
    return _range(place, declared, spec)


def _searched(place: _Place, declared: Real | Integer | Choice) -> Range | Choose | Fixed:
    if isinstance(declared, Choice):
        return _options(place, list(declared.search))
    low, high = declared.search
    if low == high:
        return Fixed(declared.default)
    whole = isinstance(declared, Integer)
    return Range(path=place.path, low=low, high=high, log=declared.log, step=None, whole=whole)


def _options(place: _Place, values: Sequence[Any]) -> Choose | Fixed:
    if len(values) == 1:
        return Fixed(values[0])
    plain = (str, int, float, bool)
    labels = [value if isinstance(value, plain) else str(value) for value in values]
    return Choose(place.path, {label: Fixed(value) for label, value in zip(labels, values, strict=True)})


def _range(place: _Place, declared: Real | Integer, spec: Mapping[str, Any]) -> Range:
    also = ", and shared: true where every group or layer has a value" if _SHARED in spec else ""
    unknown = set(spec) - _RANGE_KEYS
    if unknown or not {"low", "high"} <= set(spec):
        raise BadRecipe(f"{place}: a range has low and high, and may have log and step{also}; got {dict(spec)}")
    low, high = (_check(place.inside(end), declared, spec[end]) for end in ("low", "high"))
    step = spec.get("step")
    log = spec.get("log", declared.log and step is None)
    if not low < high:
        raise BadRecipe(f"{place}: low must be less than high, got {low} and {high}")
    if not isinstance(log, bool) or (log and low <= 0):
        raise BadRecipe(f"{place}: log must be true or false, and needs a low above 0; got log {log!r}, low {low}")
    whole = isinstance(declared, Integer)
    allowed = int if whole else (int, float)
    if step is not None and (isinstance(step, bool) or not isinstance(step, allowed) or step <= 0):
        raise BadRecipe(f"{place}.step must be a positive {'whole ' if whole else ''}number, got {step!r}")
    if step is not None and log:
        raise BadRecipe(f"{place}: a range has either step or log, not both")
    return Range(path=place.path, low=low, high=high, log=log, step=step, whole=whole)


def _recovery(place: _Place, spec: Any) -> Node:
    if isinstance(spec, Mapping) and set(spec) == {"choose"}:
        entries = _entries(place, spec)
        labels = _labels(["+".join(map(_part_label, e)) if isinstance(e, list) else str(e) for e in entries])
        return Choose(place.path, {n: _steps(place, e) for n, e in zip(labels, entries, strict=True)})
    return _steps(place, spec)


def _steps(place: _Place, spec: Any) -> Each:
    if not isinstance(spec, (list, tuple)):
        raise BadRecipe(f"{place} must be a list of recovery methods, or {{choose: [list, ...]}}, got {spec!r}")
    nodes = []
    for i, entry in enumerate(spec):
        # a method is named without its position, so that the same method in two lists is one dimension
        chosen = isinstance(entry, Mapping) and "choose" in entry
        nodes.append(_part(place.at(i) if chosen else place, "recovery", entry, may_be_null=True))
    return Each(tuple(nodes))


def _entries(place: _Place, spec: Mapping[str, Any]) -> list[Any]:
    entries = spec["choose"]
    if set(spec) != {"choose"} or not isinstance(entries, (list, tuple)) or not entries:
        raise BadRecipe(f"{place}: choose takes a list with at least one entry and no other key, got {dict(spec)}")
    return list(entries)


def _part_label(entry: Any) -> str:
    if entry is None:
        return "none"
    if isinstance(entry, Mapping) and "choose" in entry:
        return "choose"
    return str(entry.get("name") if isinstance(entry, Mapping) else entry)


def _labels(given: Sequence[str]) -> list[str]:
    """Return distinct labels: the second `l1_norm` is `l1_norm#2`."""
    return [
        name if not given[:i].count(name) else f"{name}#{given[:i].count(name) + 1}" for i, name in enumerate(given)
    ]


def _all_searched(room: str, name: str) -> dict[str, Any]:
    return {"name": name} | dict.fromkeys(hyperparameters(rooms.method_class(room, name)), "search")


def _is_leaf(spec: Mapping[str, Any]) -> bool:
    return "choose" in spec or {"low", "high"} & set(spec) != set()


def _fixed(place: _Place, declared: Hyperparameter, spec: Any) -> Fixed:
    checked = _check(place, declared, spec)
    return Fixed(dict(checked) if isinstance(checked, Mapping) else checked)


def _check(place: _Place, declared: Hyperparameter, value: Any) -> Any:
    return declared.check(str(place), value)


@dataclass(frozen=True)
class _Probe:
    """Draws at random, to try a space out before any trial exists."""

    source: random.Random

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return self.source.uniform(low, high)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return self.source.randrange(low, high + 1, step)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self.source.choice(list(choices))
