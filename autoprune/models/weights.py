"""Weights from a file into a model, without unpickling anything but tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from autoprune.errors import BadInput

_NESTED = ("state_dict", "model", "model_state_dict")
_DATA_PARALLEL = "module."
_SHOWN = 5
# Counters that older checkpoints lack; torch starts them at zero and inference never reads them.
_OPTIONAL = ".num_batches_tracked"


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a .safetensors file or a checkpoint that `torch.save` wrote, every tensor of it.

    A state dict may lie under "state_dict", "model" or "model_state_dict"; names may begin with "module.".
    Raises BadInput when the file is missing, is no such file, or holds other names or shapes than the model.
    """
    loaded = _plain_names(read_tensors(path))
    problems = _differences(model.state_dict(), loaded)
    if problems:
        raise BadInput(f"weights {path} do not fit {type(model).__name__}: " + "; ".join(problems) + ".")
    model.load_state_dict(loaded, strict=False)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the named tensors of a file, on the CPU. Raises BadInput."""
    if not path.is_file():
        raise BadInput(f"there is no weights file {path}.")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise BadInput(f"{path} is not a safetensors file: {error}") from error
    return _state_dict(_torch_load(path), path)


def _torch_load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can make the unpickler raise anything
        raise BadInput(
            f"weights {path} cannot be read: the file is damaged, or holds more than tensors, which is never "
            "unpickled. Save model.state_dict(), not the model; or a .safetensors file."
        ) from error


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        found = f"keys {', '.join(map(str, list(content)[:_SHOWN]))}" if isinstance(content, Mapping) else "no mapping"
        raise BadInput(
            f"weights {path} hold no state dict ({found}). Allowed: a mapping of names to tensors, "
            f"or one under {', '.join(_NESTED)}."
        )
    return {str(name): tensor for name, tensor in content.items()}


def _plain_names(loaded: dict[str, Tensor]) -> dict[str, Tensor]:
    if loaded and all(name.startswith(_DATA_PARALLEL) for name in loaded):
        return {name.removeprefix(_DATA_PARALLEL): tensor for name, tensor in loaded.items()}
    return loaded


def _differences(wanted: Mapping[str, Tensor], loaded: Mapping[str, Tensor]) -> list[str]:
    missing = [name for name in wanted if name not in loaded and not name.endswith(_OPTIONAL)]
    unexpected = [name for name in loaded if name not in wanted]
    reshaped = [
        f"{name} {tuple(loaded[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in wanted
        if name in loaded and loaded[name].shape != wanted[name].shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
    return [f"{len(names)} {kind} ({_first(names)})" for kind, names in kinds if names]


def _first(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
