"""Search for the best ways to prune and factorise a trained PyTorch model.

The names below are the stable Python API. They load on first use, so that `import autoprune` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "trace": "autoprune.graph",
    "Structure": "autoprune.graph",
    "Recipe": "autoprune.recipe",
    "compress": "autoprune.api",
    "launch": "autoprune.api",
    "load": "autoprune.artefact",
    "Data": "autoprune.data",
    "TensorSplit": "autoprune.data",
    "DatasetSplit": "autoprune.data",
    "Task": "autoprune.tasks",
    "AutopruneError": "autoprune.errors",
}

__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'autoprune' has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
