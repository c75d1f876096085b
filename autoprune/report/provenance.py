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
    """Return the versions that the study's models were made with; several when it was resumed with others."""
    found: dict[str, set[str]] = {}
    for path in sorted(RunFolder(folder).path.glob("trials/*/autoprune.json")):
        for name, version in _texts(_read(path).get("versions")).items():
            found.setdefault(name, set()).add(version)
    return {name: ", ".join(sorted(values)) for name, values in found.items()}


def hardware(folder: Path) -> dict[str, str]:
    """Return the machine that the study was driven from."""
    return _texts(_read(RunFolder(folder).machine_file))


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _texts(value: object) -> dict[str, str]:
    return {str(k): str(v) for k, v in value.items()} if isinstance(value, dict) else {}
