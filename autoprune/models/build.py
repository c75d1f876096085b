"""From a model spec to the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from autoprune import imports
from autoprune.errors import BadInput, unknown_name
from autoprune.models.digits_resnet import digits_resnet
from autoprune.seeds import derive_seed
from autoprune.specs import ModelSpec, as_spec

_OWN: dict[str, Callable[..., nn.Module]] = {
    "digits_resnet": digits_resnet,
}


def known_models() -> tuple[str, ...]:
    """Return the names of all models that need no function of the user."""
    return tuple(_OWN)


def build_model(
    spec: ModelSpec | Mapping[str, Any], num_classes: int | None = None, *, seed: int = 0
) -> nn.Module:
    """Build the model of a spec, on the CPU, in eval mode, with its weights where it names some.

    num_classes: of the data, for models known by name whose arguments do not say it. seed: of initial weights;
    the global random state stays as it was. Raises BadInput (UnknownName) when it cannot be.
    """
    spec = as_spec(ModelSpec, spec, "model")
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(derive_seed(seed, "initial weights"))
        return _build(spec, num_classes).eval()


def _build(spec: ModelSpec, num_classes: int | None) -> nn.Module:
    if ":" in spec.name:
        return _from_function(spec)
    if spec.name in _OWN:
        return _by_name(_OWN[spec.name], spec, num_classes)
    raise unknown_name("model", spec.name, known_models())


def _by_name(function: Callable[..., nn.Module], spec: ModelSpec, num_classes: int | None) -> nn.Module:
    arguments = dict(spec.arguments)
    if num_classes is not None:
        arguments.setdefault("num_classes", num_classes)
    model: nn.Module = imports.call(function, arguments, f"model {spec.name!r}")
    return model


def _from_function(spec: ModelSpec) -> nn.Module:
    model = imports.call(imports.resolve(spec.name, "model"), spec.arguments, f"model {spec.name!r}")
    if not isinstance(model, nn.Module):
        raise BadInput(
            f"model {spec.name!r} returned a {type(model).__name__}; it must return a torch.nn.Module."
        )
    return model
