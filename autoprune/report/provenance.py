"""What a run folder tells about where and with what its study ran. What is not there is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from autoprune.errors import BadInput
from autoprune.study.run_folder import RunFolder


def group_sizes(folder: Path) -> dict[str, int]:
    """Return the number of units of every group that can be cut; empty before the structure was traced."""
    path = RunFolder(folder).structure_file
    if not path.is_file():
        return {}
    from autoprune.graph import Structure

    try:
        structure = Structure.from_json(path.read_text(encoding="utf-8"))
    except BadInput:
        return {}
    return dict(zip(structure.names, structure.group_sizes, strict=True))


def versions(folder: Path) -> dict[str, str]:
    """Return the versions that the study's models were made with."""
    return _texts(_base_file(folder).get("versions"))


def hardware(folder: Path) -> dict[str, str]:
    """Return the machine that the study ran on."""
    return _texts(_base_file(folder).get("hardware"))


def _base_file(folder: Path) -> dict[str, Any]:
    path = RunFolder(folder).base_file
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _texts(value: object) -> dict[str, str]:
    return {str(k): str(v) for k, v in value.items()} if isinstance(value, dict) else {}
