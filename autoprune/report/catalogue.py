"""Every method and preset as plain data, from the declarations of the methods themselves."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from autoprune import presets, rooms
from autoprune.errors import unknown_name
from autoprune.evidence.effort import effort_of
from autoprune.fields import hyperparameters

PRESETS = "presets"


@dataclass(frozen=True, kw_only=True)
class HyperparameterEntry:
    """One hyperparameter: its default, what is valid, what is searched."""

    name: str
    default: Any
    valid: str
    search: str
    help: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One method or preset. paper: the first line of its file. recipe: of a preset only.

    effort: forward passes of the model, for each sample looked at, that gathering its evidence takes; criteria only.
    """

    room: str
    name: str
    summary: str
    paper: str
    hyperparameters: tuple[HyperparameterEntry, ...] = ()
    recipe: Mapping[str, Any] | None = None
    effort: str | None = None

    def plain(self) -> dict[str, Any]:
        """Return the entry as plain data for JSON."""
        found = asdict(self)
        return {k: v for k, v in found.items() if v is not None}


def entries(room: str | None = None) -> tuple[Entry, ...]:
    """Return the methods of a room, the presets, or all. Raises UnknownName for another room."""
    known = (*rooms.ROOMS, PRESETS)
    if room is not None and room not in known:
        raise unknown_name("room", room, known)
    chosen = known if room is None else (room,)
    return tuple(entry for one in chosen for entry in _of_room(one))


def _of_room(room: str) -> list[Entry]:
    if room == PRESETS:
        return [_preset(name) for name in presets.names()]
    return [_method(room, name) for name in rooms.names(room)]


def _method(room: str, name: str) -> Entry:
    made = rooms.method_class(room, name)
    declared = hyperparameters(made)
    return Entry(
        room=room,
        name=name,
        summary=_first_line(made.__doc__),
        paper=_first_line(inspect.getdoc(inspect.getmodule(made))),
        hyperparameters=tuple(
            HyperparameterEntry(name=key, default=h.default, valid=h.allowed(), search=h.searched(), help=h.help)
            for key, h in declared.items()
        ),
        effort=str(effort_of(made.needs)) if room == "criteria" else None,
    )


def _preset(name: str) -> Entry:
    preset = presets.read(name)
    return Entry(room=PRESETS, name=name, summary=preset.notes, paper=preset.summary, recipe=preset.recipe.plain())


def _first_line(text: str | None) -> str:
    lines = (text or "").strip().splitlines()
    return lines[0] if lines else ""
