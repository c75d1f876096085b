"""Objects that users name as `package.module:function`, and calls of them with the arguments of a file."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from autoprune.errors import AutopruneError, BadInput, UnknownName, unknown_name

_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def is_reference(name: str) -> bool:
    """Tell whether a name is written as `package.module:function`."""
    return _REFERENCE.fullmatch(name) is not None


def resolve(reference: str, what: str) -> Callable[..., Any]:
    """Import `package.module:function`; the current directory is on the path.

    `what` says whose reference it is ("model", "data" ...) in messages.
    Raises UnknownName when module or attribute do not exist, BadInput for any other trouble.
    """
    if not is_reference(reference):
        raise BadInput(f"{what} {reference!r} is not of the form 'package.module:function'.")
    module_name, _, path = reference.partition(":")
    found: Any = _import(module_name, reference, what)
    for part in path.split("."):
        if not hasattr(found, part):
            owner = getattr(found, "__name__", module_name)
            raise unknown_name(f"function for {what} {reference!r}", f"{owner}.{part}", _functions(found, owner))
        found = getattr(found, part)
    if not callable(found):
        raise BadInput(f"{what} {reference!r} is a {type(found).__name__}, which cannot be called; name a function.")
    return found  # type: ignore[no-any-return]


def _functions(owner: Any, name: str) -> list[str]:
    """List what a user can have meant: public callables that the module defines, not those it imported."""
    members = ((n, getattr(owner, n)) for n in dir(owner) if not n.startswith("_"))
    return [f"{name}.{n}" for n, m in members if callable(m) and getattr(m, "__module__", None) == name]


def _import(module_name: str, reference: str, what: str) -> Any:
    # A console script, unlike `python -m`, does not put the current directory on the path. It stays there:
    # the user's functions may import their neighbours only when they are called.
    here = os.getcwd()  # noqa: PTH109
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise UnknownName(
                f"{what} {reference!r}: there is no module {error.name!r}. "
                f"Modules are looked for in the current directory ({here}) and among the installed packages."
            ) from error
        raise BadInput(f"{what} {reference!r}: importing {module_name} failed: {error}.") from error
    except Exception as error:
        raise BadInput(f"{what} {reference!r}: importing {module_name} raised {_told(error)}") from error


def call(function: Callable[..., Any], arguments: Mapping[str, Any], where: str) -> Any:
    """Call a function with arguments from a file.

    Raises BadInput when they do not fit its signature, or when the call raises anything but our own errors.
    """
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        allowed = ", ".join(parameters_of(function)) or "none"
        raise BadInput(f"{where}: {error}. It takes: {allowed}.") from error
    except ValueError:  # some builtins have no signature; the call itself will tell
        pass
    try:
        return function(**arguments)
    except (AutopruneError, MemoryError):
        raise
    except Exception as error:
        raise BadInput(f"{where} raised {_told(error)}") from error


def parameters_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of the parameters a function can be given by keyword."""
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(n for n, p in inspect.signature(function).parameters.items() if p.kind in by_keyword)


def _told(error: Exception) -> str:
    text = str(error).strip() or "no message"
    return f"{type(error).__name__}: {text}"
