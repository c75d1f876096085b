"""Studies and search spaces by name: the user's own in the current directory, then those that ship."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from autoprune.errors import BadInput, unknown_name

Kind = Literal["studies", "search_spaces"]
_SUFFIXES = (".yaml", ".yml")
_SINGULAR = {"studies": "study", "search_spaces": "search space"}


def shipped_folder(kind: Kind) -> Path:
    """Return the folder that ships with the package: inside an installed wheel, or beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "_shipped" / kind
    return inside if inside.is_dir() else package.parent / kind


def find(kind: Kind, name: str) -> Path:
    """Return the YAML file of a path or a name.

    Raises BadInput for a path that does not exist, UnknownName for a name that is nowhere.
    """
    given = Path(name).expanduser()
    if given.suffix in _SUFFIXES or len(given.parts) > 1:
        if not given.is_file():
            raise BadInput(f"{_SINGULAR[kind]} file {name} does not exist (looked in {Path.cwd()})")
        return given
    for folder in _folders(kind):
        for suffix in _SUFFIXES:
            if (folder / f"{name}{suffix}").is_file():
                return folder / f"{name}{suffix}"
    raise unknown_name(_SINGULAR[kind], name, names(kind))


def names(kind: Kind) -> tuple[str, ...]:
    """Return all names that `find` knows, sorted."""
    return tuple(sorted({p.stem for f in _folders(kind) if f.is_dir() for p in f.iterdir() if p.suffix in _SUFFIXES}))


def _folders(kind: Kind) -> tuple[Path, ...]:
    return Path.cwd() / kind, shipped_folder(kind)
