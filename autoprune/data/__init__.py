"""Data sets by name or by `package.module:function`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autoprune.specs import DataSpec

if TYPE_CHECKING:
    from autoprune.data.build import as_data, build_data, known_data
    from autoprune.data.split import Data, DatasetSplit, Split, TensorSplit, training_batches

__all__ = [
    "Data",
    "DataSpec",
    "DatasetSplit",
    "Split",
    "TensorSplit",
    "as_data",
    "build_data",
    "known_data",
    "training_batches",
]


def __getattr__(name: str) -> Any:
    # Reading a spec must not import torch.
    if name in ("as_data", "build_data", "known_data"):
        from autoprune.data import build

        return getattr(build, name)
    if name in __all__:
        from autoprune.data import split

        return getattr(split, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
