"""Turning what pydantic finds wrong with a user's data into lines for the person who wrote it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

import pydantic
from pydantic import BaseModel

from autoprune.errors import BadInput, BadRecipe

M = TypeVar("M", bound=BaseModel)


def validated(model: type[M], data: object, where: str, error: type[BadInput] = BadRecipe) -> M:
    """Read plain data into a pydantic model.

    where: what the data is, for messages. Raises `error` with one line per mistake: place, what is allowed, what was
    given. A BadInput raised by a validator keeps its type and gains the place.
    """
    try:
        return model.model_validate(data)
    except pydantic.ValidationError as found:
        raise error("\n".join(_told(model, where, problem) for problem in found.errors())) from found
    except BadInput as found:
        raise type(found)(f"{where}: {found}") from found


def _told(model: type[BaseModel], where: str, problem: Any) -> str:
    path = ".".join(str(part) for part in problem["loc"] if not str(part).startswith("function-"))
    place = f"{where}: {path}" if path else where
    if problem["type"] == "extra_forbidden":
        return f"{place} is no known key; {_hint(str(problem['loc'][-1]), _keys(model, problem['loc']))}"
    message = problem["msg"].removeprefix("Value error, ")
    has_input = problem["type"] not in ("missing", "value_error") and not isinstance(problem["input"], Mapping)
    return f"{place}: {message}" + (f", got {problem['input']!r}" if has_input else "")


def _hint(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    allowed = f"allowed here: {', '.join(known)}"
    return f"did you mean {near[0]!r}? {allowed.capitalize()}" if near else allowed


def _keys(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """Return the keys that are allowed where `loc` points."""
    current: Any = model
    for part in loc[:-1]:
        field = getattr(current, "model_fields", {}).get(part)
        current = (None if field is None else _model_in(field.annotation)) or current
    return list(current.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_model_in(a) for a in getattr(annotation, "__args__", ()))
    return next((found for found in inner if found is not None), None)
