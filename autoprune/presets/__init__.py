"""Presets: published methods that are a choice of parts.

`presets/l1_filters.yaml` is the preset `l1_filters`: a recipe like any other, below a comment whose first
line names the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autoprune.errors import unknown_name
from autoprune.recipe import Recipe

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A recipe with its name; `summary` is the first line of its file, `notes` the rest of the comment."""

    name: str
    summary: str
    notes: str
    recipe: Recipe


def names() -> tuple[str, ...]:
    """Return the names of all presets, sorted."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def read(name: str) -> Preset:
    """Return a preset. Raises UnknownName with the nearest name."""
    if name not in names():
        raise unknown_name("preset", name, names())
    text = (_FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    comment = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]
    recipe = Recipe.from_yaml(text, f"preset {name}").model_copy(update={"preset": name})
    return Preset(name=name, summary=comment[0], notes=" ".join(comment[1:]), recipe=recipe)


def load(name: str) -> Recipe:
    """Return a preset's recipe. Raises UnknownName with the nearest name."""
    return read(name).recipe
