"""What accuracy a model loses when one of its blocks has random weights.

A random instance is a copy of the whole model under one seed: every module that can reset itself does, weights of
convolutions and linear layers are drawn by Kaiming's normal rule (fan in), norms start at scale 1, shift 0, mean 0 and
variance 1. Parameters that stand in a module without a reset are drawn with the mean and deviation that they have.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from autoprune.data.split import isolated_random_state
from autoprune.evidence.kinds import Gathered, Source
from autoprune.seeds import derive_seed
from autoprune.tasks import evaluate

_BATCH = 256


def reinitialisation_drops(
    model: nn.Module, blocks: Sequence[str], source: Source, instance: int, samples: int
) -> Gathered:
    """Return by block the accuracy without change minus that with the block's state from one random instance, ().

    samples: how many of the validation split are looked at, the same ones every time. The model is as it was
    afterwards, and so is the random state of the process.
    """
    other = random_instance(model, instance)
    before = accuracy(model, source, samples)
    drops = {}
    for path in blocks:
        with replaced(model.get_submodule(path), other.get_submodule(path)):
            drops[path] = torch.tensor(before - accuracy(model, source, samples), dtype=torch.float64)
    return drops


def accuracy(model: nn.Module, source: Source, samples: int) -> float:
    """Return the accuracy (0..1) in eval mode on the held-out samples."""
    held_out = source.data.validation
    return evaluate(model, held_out, source.task, _BATCH, limit=min(samples, len(held_out))).accuracy


def random_instance(model: nn.Module, instance: int) -> nn.Module:
    """Return a copy of the model on the CPU with new weights everywhere, the same for one number on every device."""
    other = copy.deepcopy(model).cpu()
    with isolated_random_state(derive_seed(instance, "random instance")), torch.no_grad():
        for module in other.modules():
            _reset(module)
    return other


def _reset(module: nn.Module) -> None:
    for name in ("reset_parameters", "_reset_parameters"):
        if callable(reset := getattr(module, name, None)):
            reset()
            break
    else:
        for parameter in module.parameters(recurse=False):
            _redraw(parameter)
    if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
        nn.init.kaiming_normal_(module.weight)


def _redraw(parameter: Tensor) -> None:
    if parameter.is_floating_point() and parameter.numel() > 1:
        deviation, mean = torch.std_mean(parameter.double())
        parameter.copy_(mean + deviation * torch.randn(parameter.shape, dtype=torch.float64))


@contextmanager
def replaced(block: nn.Module, other: nn.Module) -> Iterator[None]:
    """Give a block the whole state of another, in place, and its own back afterwards, to the last bit."""
    held = [*block.parameters(), *block.buffers()]
    given = [*other.parameters(), *other.buffers()]
    saved = [tensor.detach().clone() for tensor in held]
    with torch.no_grad():
        for tensor, value in zip(held, given, strict=True):
            tensor.copy_(value)
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(held, saved, strict=True):
                tensor.copy_(value)
