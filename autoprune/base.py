"""The base model: the trained model a study starts from, with its structure."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from autoprune.graph import Structure, trace
from autoprune.specs import ModelSpec


@dataclass(frozen=True)
class Base:
    """A trained model in eval mode, its verified structure, and how to build it again (None: only by hand)."""

    model: nn.Module
    structure: Structure
    spec: ModelSpec | None = None

    @functools.cached_property
    def flops(self) -> int:
        """FLOPs (2 x MACs) for one sample."""
        return self.structure.flops()

    @functools.cached_property
    def params(self) -> int:
        """Number of parameters."""
        return self.structure.params()

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the structure and of all weights: what gathered evidence is valid for."""
        digest = hashlib.sha256(self.structure.fingerprint.encode())
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            # bytes by way of uint8, which numpy has for every dtype
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:32]


def make_base(
    model: nn.Module,
    example_inputs: Any,
    *,
    spec: ModelSpec | None = None,
    exclude: Sequence[str] = (),
    round_to: int = 1,
) -> Base:
    """Trace a trained model. Raises TraceFailed."""
    model.eval()
    structure = trace(model, example_inputs, exclude=tuple(exclude), round_to=round_to)
    return Base(model, structure, spec)
