"""The structure of a model without some of its blocks, and the model itself."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from autoprune.errors import BadInput, unknown_name
from autoprune.graph.freezing import without_groups
from autoprune.graph.parts import Block, within
from autoprune.graph.skipped import stand_ins

if TYPE_CHECKING:
    from autoprune.graph.structure import Structure


def arguments(structure: Structure, names: Sequence[str]) -> dict[str, int | str]:
    """Module path -> the argument that takes the place of the block. Raises UnknownName or BadInput."""
    if isinstance(names, str):
        raise BadInput(f"blocks must be a sequence of names, got {names!r}; write ({names!r},)")
    plans = {plan.name: plan for plan in structure.block_plans}
    reasons = {fixed.name: fixed.reason for fixed in structure.fixed_blocks}
    for name in names:
        if name in reasons:
            raise BadInput(f"block {name!r} cannot be skipped: {reasons[name]}")
        if name not in plans:
            raise unknown_name("block that can be skipped", name, plans)
    return {name: plans[name].argument for name in dict.fromkeys(names)}


def blocks(structure: Structure) -> tuple[Block, ...]:
    """The blocks with what each saves, in graph order."""
    flops, params = structure.total_flops(structure.sizes), structure.total_params(structure.sizes)
    found = []
    for plan in structure.block_plans:
        less = without_blocks(structure, (plan.name,))
        saved = flops - less.total_flops(less.sizes), params - less.total_params(less.sizes)
        found.append(Block(plan.name, float(saved[0]), round(saved[1]), plan.first))
    return tuple(found)


def without_blocks(structure: Structure, names: Sequence[str]) -> Structure:
    """The structure of the model without these blocks. Group names stay; groups that lived inside are gone."""
    gone = tuple(arguments(structure, names))
    if not gone:
        return structure

    def stays(name: str) -> bool:
        return not any(within(path, name) for path in gone)

    kept_terms = tuple(term for term in structure.terms if stays(term.weight))
    products = tuple(product for product in structure.products if stays(product.module))
    rescales = tuple(item for item in structure.rescales if stays(item.tensor))
    views = tuple(view for view in structure.views if stays(view.module))
    parts = tuple(part for part in structure.parts if stays(part.module))
    used = {name for product in products for name, _ in product.axes}
    used |= {item.counter for item in rescales} | {name for view in views for *_, name in view.axes}
    used |= {name for part in parts for _, name in part.lengths}
    less = dataclasses.replace(
        structure,
        tensors={name: tensor for name, tensor in structure.tensors.items() if stays(name)},
        axes=tuple(plan for plan in structure.axes if stays(plan.tensor)),
        # some count for an attribute of a module, the others for what names them
        counters=tuple(p for p in structure.counters if (p.tensor in used if p.tensor[0] == "#" else stays(p.module))),
        attributes=tuple(size for size in structure.attributes if stays(size.module)),
        terms=kept_terms,
        products=products,
        rescales=rescales,
        views=views,
        parts=parts,
        resized=tuple(path for path in structure.resized if stays(path)),
        flops_fixed=structure.flops_fixed - sum(p.flops_fixed for p in structure.block_plans if p.name in gone),
        layers=tuple(layer for layer in structure.layers if stays(layer.name)),
        frozen=tuple(item for item in structure.frozen if stays(item.name)),
        block_plans=tuple(plan for plan in structure.block_plans if plan.name not in gone),
        skipped=(*structure.skipped, *gone),
        fingerprint=hashlib.sha256("\n".join((structure.fingerprint, *sorted(gone))).encode()).hexdigest(),
    )
    alive = {less.names[i] for plan in less.axes for i in set(_owners(less, plan.units))}
    return without_groups(less, [name for name in less.names if name not in alive])


def _owners(structure: Structure, units: Any) -> list[int]:
    found: list[int] = (structure.offsets.searchsorted(units[units >= 0], side="right") - 1).tolist()
    return found


def skip_blocks(structure: Structure, model: nn.Module, names: Sequence[str]) -> nn.Module:
    """Return a copy of the model without these blocks; what is taken out is never copied."""
    return copied_without(structure, model, names, {})


def copied_without(structure: Structure, model: nn.Module, names: Sequence[str], memo: dict[int, Any]) -> nn.Module:
    """Copy a model with stand-ins for these blocks, and with whatever else `memo` replaces."""
    for path, stand_in in stand_ins(model, arguments(structure, names)).items():
        memo[id(model.get_submodule(path))] = stand_in
    return copy.deepcopy(model, memo)
