"""A compressed model, and the plain data that says how it came from its base model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from torch import nn

from autoprune import rooms
from autoprune.evidence import ModelEvidence
from autoprune.graph import Selection, Structure, apply_selection
from autoprune.lowrank import LowRank
from autoprune.masks import Masks
from autoprune.modules import replace_module
from autoprune.replacement import Replacement, rows_by_layer


@dataclass(frozen=True, kw_only=True)
class Factor:
    """One factorised layer: its module path, the low-rank method as plain data, the rank."""

    layer: str
    method: Mapping[str, Any]
    rank: int


@dataclass(frozen=True, kw_only=True)
class Implant:
    """One layer with rows in a cheaper form: its module path, the replacement as plain data, rows of the cut layer."""

    layer: str
    method: Mapping[str, Any]
    rows: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """A cut and factorised model with what was kept of the base model.

    `masks` lie over the model's weights, by name; they are empty unless single weights were removed.
    """

    model: nn.Module
    selection: Selection
    factors: tuple[Factor, ...]
    implants: tuple[Implant, ...] = ()
    masks: Masks = field(default_factory=dict)


def factorise(
    model: nn.Module, low_rank: LowRank, ranks: Mapping[str, int], evidence: ModelEvidence | None = None
) -> tuple[Factor, ...]:
    """Replace layers of the model, in place, by their factorisations.

    evidence: about this model, for a method that fits outputs; without it all layers are fitted to their weights.
    """
    for layer, rank in ranks.items():
        moments = evidence.input_moments(layer) if evidence is not None and low_rank.fits_outputs else None
        replace_module(model, layer, low_rank.factor(model.get_submodule(layer), rank, moments))
    method = low_rank.config()
    return tuple(Factor(layer=layer, method=method, rank=rank) for layer, rank in ranks.items())


def implant(
    model: nn.Module, structure: Structure, replacement: Replacement, units: Mapping[str, list[int]]
) -> tuple[Implant, ...]:
    """Give units of a cut model, in place, their cheaper form. structure: of this model; units: its own, by group."""
    rows, method = rows_by_layer(structure, replacement, units), replacement.config()
    for layer, own in rows.items():
        replace_module(model, layer, replacement.replaced(model.get_submodule(layer), own))
    return tuple(Implant(layer=layer, method=method, rows=tuple(own)) for layer, own in rows.items())


def exchange(model: nn.Module, replacement: Replacement) -> tuple[Implant, ...]:
    """Exchange whole layers of a finished model, in place, where the replacement is of that kind."""
    found = []
    for layer, method in replacement.layers(model):
        module = cast(nn.Conv2d, model.get_submodule(layer))
        rows = tuple(range(len(module.weight)))
        replace_module(model, layer, method.replaced(module, rows))
        found.append(Implant(layer=layer, method=method.config(), rows=rows))
    return tuple(found)


def rebuild(
    model: nn.Module, selection: Selection, factors: Sequence[Factor], implants: Sequence[Implant] = ()
) -> nn.Module:
    """Give an uncut base model, in place, the shape of a compressed one; its weights are to be loaded next.

    Raises WrongArtefact when the model is not the one that the selection was made for.
    """
    apply_selection(model, selection)
    made = [(item, cast(Replacement, rooms.build("replacement", item.method))) for item in implants]
    _implant(model, [(item, method) for item, method in made if not method.whole])
    for factor in factors:
        method = cast(LowRank, rooms.build("lowrank", factor.method))
        module = model.get_submodule(factor.layer)
        replace_module(model, factor.layer, method.skeleton(module, factor.rank))
    _implant(model, [(item, method) for item, method in made if method.whole])
    return model


def _implant(model: nn.Module, made: Sequence[tuple[Implant, Replacement]]) -> None:
    for item, method in made:
        replace_module(model, item.layer, method.skeleton(model.get_submodule(item.layer), item.rows))
