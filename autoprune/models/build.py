"""From a model spec to the model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torchvision
from torch import nn

from autoprune import imports
from autoprune.errors import BadInput, unknown_name
from autoprune.models.digits_resnet import digits_resnet
from autoprune.models.lenet import lenet
from autoprune.models.resnet_cifar import (
    resnet20_cifar,
    resnet32_cifar,
    resnet44_cifar,
    resnet56_cifar,
    resnet110_cifar,
)
from autoprune.models.vgg_cifar import vgg16_bn_cifar
from autoprune.models.weights import load_weights
from autoprune.seeds import derive_seed
from autoprune.specs import ModelSpec, as_spec, expand_path

_OWN: dict[str, Callable[..., nn.Module]] = {
    "digits_resnet": digits_resnet,
    "lenet": lenet,
    "resnet20_cifar": resnet20_cifar,
    "resnet32_cifar": resnet32_cifar,
    "resnet44_cifar": resnet44_cifar,
    "resnet56_cifar": resnet56_cifar,
    "resnet110_cifar": resnet110_cifar,
    "vgg16_bn_cifar": vgg16_bn_cifar,
}

_SLOW_START = ("googlenet", "inception_v3")


def known_models() -> tuple[str, ...]:
    """Return the names of all models that need no function of the user: ours, then torchvision's."""
    classifiers = torchvision.models.list_models(module=torchvision.models)
    segmenters = torchvision.models.list_models(module=torchvision.models.segmentation)
    return (*_OWN, *classifiers, *segmenters)


def build_model(spec: ModelSpec | Mapping[str, Any], num_classes: int | None = None, *, seed: int = 0) -> nn.Module:
    """Build the model of a spec, on the CPU, in eval mode, with its weights where it names some.

    num_classes: of the data, for models known by name whose arguments do not say it.
    seed: of initial weights; the global random state stays as it was.
    Raises BadInput (UnknownName) when the model cannot be built or the weights do not fit.
    """
    spec = as_spec(ModelSpec, spec, "model")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "initial weights"))
        model = _build(spec, num_classes)
    if spec.weights is not None:
        load_weights(model, expand_path(spec.weights, "model.weights"))
    return model.eval()


def _build(spec: ModelSpec, num_classes: int | None) -> nn.Module:
    if ":" in spec.name:
        model = imports.call(imports.resolve(spec.name, "model"), spec.arguments, f"model {spec.name!r}")
    elif spec.name in known_models():
        model = _by_name(spec, num_classes)
    else:
        raise unknown_name("model", spec.name, known_models())
    if not isinstance(model, nn.Module):
        raise BadInput(f"model {spec.name!r} returned a {type(model).__name__}, not a torch.nn.Module.")
    return model


def _by_name(spec: ModelSpec, num_classes: int | None) -> Any:
    arguments = {} if num_classes is None else {"num_classes": num_classes}
    if spec.name in _OWN:
        builder: Callable[..., Any] = _OWN[spec.name]
    else:
        builder = torchvision.models.get_model_builder(spec.name)
        arguments |= _quiet_arguments(spec.name, builder)
    return imports.call(builder, arguments | spec.arguments, f"model {spec.name!r}")


def _quiet_arguments(name: str, builder: Callable[..., Any]) -> dict[str, Any]:
    """Return arguments that keep torchvision from fetching weights, and from the slow start it warns of."""
    arguments: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(builder).parameters:
        arguments["weights_backbone"] = None
    if name in _SLOW_START:
        arguments["init_weights"] = False
    return arguments
