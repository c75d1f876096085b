"""Hyperparameters, declared once where a method is defined.

A field says its default, the range in which it is valid and the range worth searching. Validation, search spaces,
`autoprune methods` and the reference tables all read this one declaration.

    @dataclass(frozen=True, kw_only=True)
    class L1Norm(Criterion):
        power: int = choice(1, options=(1, 2), help="exponent of each weight")
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from autoprune.errors import BadRecipe

_KEY = "autoprune"
_WHOLE_RANGE = (-math.inf, math.inf)


@dataclass(frozen=True, kw_only=True)
class Real:
    """A real number. `valid` and `search` are closed intervals."""

    default: float
    valid: tuple[float, float]
    search: tuple[float, float]
    log: bool
    help: str

    def check(self, where: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise BadRecipe(f"{where} must be a number {self.allowed()}, got {value!r}")
        if not self.valid[0] <= value <= self.valid[1]:
            raise BadRecipe(f"{where} must be {self.allowed()}, got {value!r}")
        return float(value)

    def allowed(self) -> str:
        return f"from {self.valid[0]:g} to {self.valid[1]:g}"

    def searched(self) -> str:
        return f"{self.search[0]:g} to {self.search[1]:g}{', log' if self.log else ''}"


@dataclass(frozen=True, kw_only=True)
class Integer:
    """A whole number. `valid` and `search` are closed intervals."""

    default: int
    valid: tuple[int, int]
    search: tuple[int, int]
    log: bool
    help: str

    def check(self, where: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadRecipe(f"{where} must be a whole number {self.allowed()}, got {value!r}")
        if not self.valid[0] <= value <= self.valid[1]:
            raise BadRecipe(f"{where} must be {self.allowed()}, got {value!r}")
        return value

    def allowed(self) -> str:
        return f"from {self.valid[0]} to {self.valid[1]}"

    def searched(self) -> str:
        return f"{self.search[0]} to {self.search[1]}{', log' if self.log else ''}"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of a few values. `search` lists those worth searching."""

    default: Any
    options: tuple[Any, ...]
    search: tuple[Any, ...]
    help: str

    def check(self, where: str, value: object) -> Any:
        for option in self.options:
            if value == option and isinstance(value, bool) == isinstance(option, bool):
                return option
        raise BadRecipe(f"{where} must be {self.allowed()}, got {value!r}")

    def allowed(self) -> str:
        return "one of " + ", ".join(map(str, self.options))

    def searched(self) -> str:
        return ", ".join(map(str, self.search))


@dataclass(frozen=True, kw_only=True)
class PerItem:
    """One number for every group, layer or stage: a single number for all, or a mapping from name or glob to number.

    Exact names win over globs, earlier globs over later ones; what no key matches has `unmatched`.
    """

    of: Literal["group", "layer", "stage"]
    value: Real
    unmatched: float

    @property
    def default(self) -> float:
        return self.value.default

    @property
    def help(self) -> str:
        return self.value.help

    def check(self, where: str, value: object) -> float | Mapping[str, float]:
        if isinstance(value, Mapping):
            return MappingProxyType({str(k): self.value.check(f"{where}[{k}]", v) for k, v in value.items()})
        return self.value.check(where, value)

    def allowed(self) -> str:
        return f"{self.value.allowed()}, or a mapping from {self.of} name or glob to that"

    def searched(self) -> str:
        return f"{self.value.searched()}, one per {self.of}"

    def resolve(self, where: str, value: float | Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
        """Return the value of every name. Raises BadRecipe for a key that matches none of them."""
        if not isinstance(value, Mapping):
            return dict.fromkeys(names, float(value))
        for key in value:
            if key not in names and not fnmatch.filter(names, key):
                shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
                raise BadRecipe(f"{where}: no {self.of} matches {key!r}; there are {shown}")
        return {name: self._find(name, value) for name in names}

    def without(self, value: Mapping[str, float], before: Sequence[str], after: Sequence[str]) -> Mapping[str, float]:
        """Return the values without those whose keys match only names that are gone: in `before`, not in `after`."""

        def matches(key: str, names: Sequence[str]) -> bool:
            return key in names or bool(fnmatch.filter(names, key))

        return {key: v for key, v in value.items() if matches(key, after) or not matches(key, before)}

    def _find(self, name: str, value: Mapping[str, float]) -> float:
        if name in value:
            return value[name]
        return next((v for key, v in value.items() if fnmatch.fnmatchcase(name, key)), self.unmatched)


Hyperparameter = Real | Integer | Choice | PerItem


def real(
    default: float,
    *,
    valid: tuple[float, float] = _WHOLE_RANGE,
    search: tuple[float, float],
    log: bool = False,
    help: str,
) -> Any:
    """Declare a real hyperparameter."""
    return _field(Real(default=default, valid=valid, search=search, log=log, help=help))


def integer(default: int, *, valid: tuple[int, int], search: tuple[int, int], log: bool = False, help: str) -> Any:
    """Declare a whole-number hyperparameter."""
    return _field(Integer(default=default, valid=valid, search=search, log=log, help=help))


def choice(default: Any, *, options: Sequence[Any], search: Sequence[Any] | None = None, help: str) -> Any:
    """Declare a categorical hyperparameter; all options are searched unless `search` names fewer."""
    tried = tuple(options if search is None else search)
    return _field(Choice(default=default, options=tuple(options), search=tried, help=help))


def per_item(
    default: float,
    *,
    of: Literal["group", "layer", "stage"],
    valid: tuple[float, float],
    search: tuple[float, float],
    unmatched: float,
    log: bool = False,
    help: str,
) -> Any:
    """Declare one real hyperparameter per group, layer or stage."""
    value = Real(default=default, valid=valid, search=search, log=log, help=help)
    return _field(PerItem(of=of, value=value, unmatched=unmatched))


def again(declared_in: type, name: str, **changes: Any) -> Any:
    """Declare a hyperparameter of another class again, with another default, range or help."""
    return _field(dataclasses.replace(hyperparameters(declared_in)[name], **changes))


def _field(declared: Hyperparameter) -> Any:
    where = f"default of {declared.help!r}"
    declared.check(where, declared.default)
    for end in _search_values(declared):
        declared.check(f"search range of {declared.help!r}", end)
    return dataclasses.field(default=declared.default, metadata={_KEY: declared})


def _search_values(declared: Hyperparameter) -> tuple[Any, ...]:
    return declared.value.search if isinstance(declared, PerItem) else declared.search


def hyperparameters(method: type | object) -> dict[str, Hyperparameter]:
    """Return the declared hyperparameters of a method class or instance, in order."""
    return {
        f.name: f.metadata[_KEY]
        for f in dataclasses.fields(method)  # type: ignore[arg-type]
        if _KEY in f.metadata
    }
