"""The base model: the trained model a study starts from, with its structure."""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from autoprune.errors import BadInput
from autoprune.graph import Structure, trace
from autoprune.models import build_model
from autoprune.seeds import derive_seed
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


def fresh_model(base: Base, num_classes: int | None, seed: int) -> nn.Module:
    """Return a model of the base model's architecture with new weights, in eval mode.

    It is built again as the spec says; without a spec every module of a copy starts anew by its own
    `reset_parameters`. Raises BadInput when that leaves parameters as they were.
    """
    if base.spec is not None:
        return build_model(base.spec.model_copy(update={"weights": None}), num_classes, seed=seed)
    model = copy.deepcopy(base.model)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "initial weights"))
        for name, module in model.named_modules():
            reset = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
            if reset is not None:
                reset()
            elif any(True for _ in module.parameters(recurse=False)):
                raise BadInput(
                    f"module {name!r}, a {type(module).__name__}, has parameters and no reset_parameters, so that it "
                    "cannot start from new weights. Name the model in a study (model.name), which builds it anew"
                )
    return model.eval()
