"""A proven structure on disk, refused when the model is another one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from autoprune.errors import WrongArtefact
from autoprune.files import replacing
from autoprune.graph.structure import Structure
from autoprune.graph.trace import trace


def cached_trace(
    path: Path, model: nn.Module, example_inputs: Any, *, exclude: Sequence[str] = (), round_to: int = 1
) -> Structure:
    """Return the structure in the file, or trace and verify the model and write it there.

    A hash of the graph, the tensor names and shapes and the options tells whether the file belongs to this model;
    working it out takes one trace, but no verification. Raises WrongArtefact if it does not, and what `trace` raises.
    """
    if not path.exists():
        structure = trace(model, example_inputs, exclude=exclude, round_to=round_to)
        with replacing(path) as temporary:
            temporary.write_text(structure.to_json())
        return structure
    structure = Structure.from_json(path.read_text())
    now = trace(model, example_inputs, exclude=exclude, round_to=round_to, verify=False)
    if now.fingerprint != structure.fingerprint:
        raise WrongArtefact(
            f"{path} holds the structure of another model{_difference(structure, now)}, or of other options or another "
            f"version of torch. Remove the file to trace this model, or give the model that it was made for."
        )
    return structure


def _difference(held: Structure, now: Structure) -> str:
    """The first tensor in which the two differ, in words."""
    for name in dict.fromkeys((*held.tensors, *now.tensors)):
        before, after = held.tensors.get(name), now.tensors.get(name)
        if before != after:
            was = f"has shape {before.shape} there" if before else "does not exist there"
            has = f"{after.shape} here" if after else "does not exist here"
            return f" ({name} {was}, {has})"
    return " (the same tensors, used otherwise)"
