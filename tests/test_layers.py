"""The rooms know only what stands below them, and the package starts without heavy imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import autoprune
from autoprune import rooms

PACKAGE = Path(autoprune.__file__).parent
# From the bottom up. What is in one layer may import its own layer and those before it.
LAYERS = (
    {
        "errors",
        "fields",
        "files",
        "imports",
        "machine",
        "modules",
        "normalisation",
        "rooms",
        "budget",
        "seeds",
        "settings",
        "shipped",
    }
    | {"specs", "threads", "training_settings", "validation"},
    {"data", "tasks", "curvature", "dynamic", "models", "training", "norms", "initialisation", "masks", "graph"}
    | {"programs"},
    {"cost", "evidence", "certified"},
    set(rooms.ROOMS),
    {"recipe", "presets"},
    {"compressed", "base", "probe", "repair", "shortening", "trial", "widening", "deployment"},
    {"artefact", "export"},
    {"search"},
    {"study"},
    {"report"},
    {"api"},
    {"cli"},
)


def layer_of(name: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if name in names)


def imported(path: Path, *, at_load: bool) -> set[str]:
    """Return the second parts of the autoprune modules that a file imports, type checking left out."""
    tree = ast.parse(path.read_text())
    top = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)] if at_load else ast.walk(tree)
    found = set[str]()
    for node in top:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("autoprune"):
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own in ("__init__", "__main__", "_shipped"):
        return
    above = {name for name in imported(path, at_load=True) if layer_of(name) > layer_of(own)}
    assert not above, f"{path.relative_to(PACKAGE)} imports {sorted(above)}, which stand above {own}"


@pytest.mark.parametrize("room", rooms.ROOMS)
def test_no_method_imports_another(room: str) -> None:
    for path in (PACKAGE / room).glob("[!_]*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"autoprune.{room}."):
                assert (node.module or "").split(".")[2].startswith("_"), f"{path.name} imports {node.module}"


def test_package_and_command_line_start_without_torch() -> None:
    code = "import sys, autoprune, autoprune.cli; print([m for m in ('torch', 'optuna', 'ray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "[]"
