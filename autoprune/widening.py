"""The same architecture with more units in some of its groups: the inverse of a cut.

A unit that is there several times takes as many indices on every axis where it lives, and size attributes follow. What
results is a new architecture, to be trained from scratch; a study names it as its model:

    model:
      name: autoprune.widening:build
      arguments: {model: {name: digits_resnet, arguments: {num_classes: 10}}, factors: {layer2: 2}, shape: [1, 8, 8]}
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from autoprune.cost import count_flops
from autoprune.errors import BadInput
from autoprune.graph import Selection, Structure, apply_selection, trace
from autoprune.initialisation import reinitialise
from autoprune.models import build_model

Counts = NDArray[np.int64]


def widened_sizes(structure: Structure, factors: Mapping[str, float]) -> Counts:
    """Return the number of units of every group, (G,): size times factor, rounded; 1 for groups not named.

    Raises UnknownName, or BadInput for a factor below 1.
    """
    sizes_G = structure.sizes.copy()
    for name, factor in factors.items():
        group = structure.group(name)
        if factor < 1:
            raise BadInput(f"factors[{name}] must be at least 1, got {factor:g}; a cut makes groups narrower")
        sizes_G[structure.names.index(name)] = round(group.size * factor)
    return sizes_G


def widen(model: nn.Module, structure: Structure, factors: Mapping[str, float]) -> nn.Module:
    """Return a wider copy of a model: units of the named groups repeated, the first ones most often.

    The copies compute the same, but the model does not: its weights are of no use until it is trained anew.
    Raises as `widened_sizes` does.
    """
    sizes_G, full_G = widened_sizes(structure, factors), structure.sizes
    copies_U = np.concatenate([n // c + (np.arange(c) < n % c) for n, c in zip(sizes_G, full_G, strict=True)])
    kept: dict[str, dict[int, list[int]]] = {}
    lengths: dict[tuple[str, int], int] = {}
    for (tensor, axis), plans in structure.plans_by_axis.items():
        copies = np.ones(len(plans[0].units), dtype=np.int64)
        for plan in plans:
            copies *= np.where(plan.units < 0, 1, copies_U[plan.units])
        lengths[tensor, axis] = int(copies.sum())
        if tensor in structure.tensors and (copies > 1).any():
            kept.setdefault(tensor, {})[axis] = np.repeat(np.arange(len(copies)), copies).tolist()
    attributes: dict[str, dict[str, int]] = {}
    for size in structure.attributes:
        if (size.tensor, size.axis) in lengths:
            value = lengths[size.tensor, size.axis] * size.multiply // size.divide
            attributes.setdefault(size.module, {})[size.attribute] = value
    shapes = {name: structure.tensors[name].shape for name in kept}
    return apply_selection(copy.deepcopy(model), Selection(kept, attributes, shapes))


def build(model: Mapping[str, Any], factors: Mapping[str, float], shape: Sequence[int]) -> nn.Module:
    """Return a widened model with new weights, each drawn by the rule of the model's own initialiser.

    model: name and arguments as in a study. factors: group to how many times its units. shape: of one sample, float32.
    Random numbers come from torch's global generator, as in every model's constructor.
    Raises BadInput where the wider model does not run: some code fixes sizes that no attribute says.
    """
    seeds = torch.randint(2**31, (2,)).tolist()
    base = build_model(model, seed=seeds[0])
    inputs = torch.zeros(2, *shape)
    structure = trace(base, inputs, verify=False)
    wide = widen(base, structure, factors)
    reinitialise(wide, base, seeds[1])
    _check(wide, structure, factors, inputs)
    return wide


def _check(wide: nn.Module, structure: Structure, factors: Mapping[str, float], inputs: torch.Tensor) -> None:
    expected = structure.total_flops(widened_sizes(structure, factors))
    try:
        found = count_flops(wide, inputs[:1])
    except RuntimeError as error:
        raise BadInput(
            f"the model does not run with factors {dict(factors)}: {error}. Code of the model fixes the width of one "
            "of these groups; leave that one out"
        ) from error
    if found != round(expected):
        raise BadInput(f"the model with factors {dict(factors)} has {found} FLOPs and not {round(expected)}")
