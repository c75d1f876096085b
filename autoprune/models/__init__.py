"""Models by name or by `package.module:function`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autoprune.specs import ModelSpec, TrainSpec

if TYPE_CHECKING:
    from autoprune.models.build import build_model, known_models
    from autoprune.models.training import train_base

__all__ = ["ModelSpec", "TrainSpec", "build_model", "known_models", "train_base"]


def __getattr__(name: str) -> Any:
    # Reading a spec must not import torch.
    if name in ("build_model", "known_models"):
        from autoprune.models import build

        return getattr(build, name)
    if name == "train_base":
        from autoprune.models import training

        return training.train_base
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
