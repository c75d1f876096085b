"""New weights for a cut or widened model, drawn as the base model's initialiser would draw them for its shapes.

The initialiser is code in the model's constructor, which builds the full shapes only. So a fresh full-size model is
looked at instead: the second moment of each weight, times its fan, tells the rule it was drawn by (He, Glorot, LeCun,
torch's default), within sampling error. The cut model gets entries of the fresh model, scaled as the rule says for its
own fans; what follows no such rule keeps its scale. Where the model is wider than the fresh one, entries are drawn from
the fresh ones with repetition.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autoprune.errors import BadInput
from autoprune.seeds import derive_seed

_RULES: tuple[tuple[str, float], ...] = (
    ("out", 2.0),  # He et al. 2015, backward form
    ("in", 2.0),  # He et al. 2015
    ("in", 1 / 3),  # torch's default of convolutions and linear layers, and of their biases
    ("mean", 1.0),  # Glorot and Bengio 2010
    ("in", 1.0),  # LeCun et al. 1998
    ("out", 1.0),
)
"""Which fan, and what the second moment times that fan is."""
_STANDARD_ERRORS = 5.0


@dataclass(frozen=True)
class _Weight:
    """A parameter with the module's type, and the weight whose fans its scale depends on."""

    kind: str
    tensor: Tensor
    fans_of: str


def reinitialise(model: nn.Module, fresh: nn.Module, seed: int) -> None:
    """Give a cut or widened model, in place, new parameters and empty batch statistics.

    fresh: a newly initialised model of the uncut architecture; parameters are matched by name. Modules that it lacks,
    such as factors of a layer, start anew by their own `reset_parameters`, by `seed`. Other buffers stay.
    Raises BadInput for parameters that cannot start anew.
    """
    full = dict(fresh.named_parameters(remove_duplicate=False))
    small = dict(model.named_parameters(remove_duplicate=False))
    scales = _scales(fresh, full, small)
    strange: list[str] = []
    with torch.no_grad():
        for name, parameter in small.items():
            source = full.get(name)
            if source is None or source.ndim != parameter.ndim:
                strange.append(name)
                continue
            parameter.copy_(_part(source, parameter, derive_seed(seed, "repeated", name)) * scales.get(name, 1.0))
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.reset_running_stats()
    _reset(model, strange, seed)


def _part(source: Tensor, like: Tensor, seed: int) -> Tensor:
    """Return entries of the fresh parameter in the shape of another: the first ones, or drawn where it is larger."""
    if all(n <= m for n, m in zip(like.shape, source.shape, strict=True)):
        return source[tuple(slice(0, n) for n in like.shape)]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(source.numel(), (like.numel(),), generator=generator)
    return source.flatten()[drawn.to(source.device)].view(like.shape)


def _scales(fresh: nn.Module, full: Mapping[str, Tensor], small: Mapping[str, Tensor]) -> dict[str, float]:
    """Return by name what entries of the fresh parameters are multiplied by."""
    weights = _weights(fresh, full)
    fitting = {name: _fitting(weight, full[weight.fans_of]) for name, weight in weights.items()}
    # a square layer fits several rules: what most of its kind fit decides
    votes: Counter[tuple[str, str]] = Counter()
    for name, fans in fitting.items():
        votes.update((weights[name].kind, fan) for fan in fans)
    found = {}
    for name, fans in fitting.items():
        weight = weights[name]
        if fans and weight.fans_of in small:
            fan = max(fans, key=lambda one: votes[weight.kind, one])
            found[name] = math.sqrt(_fan(full[weight.fans_of], fan) / _fan(small[weight.fans_of], fan))
    return found


def _weights(fresh: nn.Module, full: Mapping[str, Tensor]) -> dict[str, _Weight]:
    """Return the random parameters: weights, and biases beside a weight, whose default scale is by the weight's fan."""
    found = {}
    for path, module in fresh.named_modules():
        for leaf, _ in module.named_parameters(recurse=False):
            name, weight = (f"{path}.{part}".removeprefix(".") for part in (leaf, "weight"))
            tensor = full[name]
            fans_of = name if tensor.ndim > 1 else weight
            if (
                tensor.numel() > 1
                and fans_of in full
                and full[fans_of].ndim > 1
                and bool((tensor != tensor.flatten()[0]).any())
            ):
                found[name] = _Weight(f"{type(module).__name__}.{leaf}", tensor, fans_of)
    return found


def _fitting(weight: _Weight, fans_of: Tensor) -> list[str]:
    """Return the fans whose rule the second moment agrees with, without repetition."""
    square = float(weight.tensor.detach().double().square().mean())
    allowed = _STANDARD_ERRORS * math.sqrt(2 / weight.tensor.numel())
    rules = _RULES if weight.tensor.ndim > 1 else tuple(rule for rule in _RULES if rule == ("in", 1 / 3))
    fits = [fan for fan, gain in rules if abs(math.log(square * _fan(fans_of, fan) / gain)) < allowed]
    return list(dict.fromkeys(fits))


def _fan(weight: Tensor, which: str) -> float:
    """Return a fan as torch.nn.init counts it: features times kernel positions."""
    positions = math.prod(weight.shape[2:])
    fan_in, fan_out = weight.shape[1] * positions, weight.shape[0] * positions
    return {"in": fan_in, "out": fan_out, "mean": (fan_in + fan_out) / 2}[which]


def _reset(model: nn.Module, names: list[str], seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "initial weights"))
        for path in dict.fromkeys(name.rpartition(".")[0] for name in names):
            reset = getattr(model.get_submodule(path), "reset_parameters", None)
            if reset is None:
                raise BadInput(f"module {path!r} is not in the base model and has no reset_parameters to start anew by")
            reset()
