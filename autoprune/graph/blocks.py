"""Blocks: the residual modules that a model can do without.

A block is the innermost module that is complete: with its branches at zero it is the identity (see `residuals`). A
module whose additions all lie in smaller blocks gives way to them, as a stage does to its blocks; a module that adds
something of its own around them stands for all. So a transformer layer with two residual branches is one block, and
where each branch is a residual module of its own, each of them is one.

Modules of the same class as a block, and modules that add to their input otherwise, are units too: they are reported
with the reason why they stay, and a stage begins where the outputs of a unit have another shape than those before.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.fx import Node

from autoprune.graph.parts import BlockPlan, FixedBlock, within
from autoprune.graph.plan import is_excluded
from autoprune.graph.residuals import Reader, Residual
from autoprune.graph.structure import Structure
from autoprune.graph.tracer import Traced
from autoprune.graph.watching import Seen


def with_blocks(
    structure: Structure, traced: Traced, seen: Mapping[str, Seen], batch: int, exclude: Sequence[str]
) -> Structure:
    """Return the structure with its blocks, not proven yet, and the units that cannot be skipped.

    seen: every module in a forward pass of `batch` samples. exclude: globs of modules that nobody may touch.
    """
    reader = Reader(traced.program)
    found = list(reader.residuals())
    reasons = {
        item.path: item.problem or _excluded(item.path, traced, exclude) or _obstacle(item.path, reader, traced, seen)
        for item in found
    }
    chosen = innermost([item for item in found if not reasons[item.path]])
    units = dict.fromkeys(_alike(chosen, reader, traced), "nothing goes around it")
    units |= {item.path: reasons[item.path] for item in _others(found, chosen)}
    units |= {item.path: "" for item in chosen}
    order = sorted(units, key=lambda path: reader.place[reader.exits[path][0]])
    shapes = [_shape(reader.exits[path][0]) for path in order]
    first = {path: i == 0 or shapes[i] != shapes[i - 1] for i, path in enumerate(order)}
    return dataclasses.replace(
        structure,
        block_plans=tuple(_plan(path, structure, seen[path], batch, first[path]) for path in order if not units[path]),
        fixed_blocks=tuple(FixedBlock(path, units[path]) for path in order if units[path]),
    )


def innermost(found: list[Residual]) -> list[Residual]:
    """The smallest modules that cover the additions, none inside another."""
    kept: list[Residual] = []
    for item in sorted(found, key=lambda item: -item.path.count(".")):
        inner = [other for other in kept if within(item.path, other.path)]
        covered = {node for other in inner for node in other.additions}
        if inner and (set(item.additions) <= covered or not covered <= set(item.additions)):
            continue
        kept = [other for other in kept if other not in inner] + [item]
    return kept


def _excluded(path: str, traced: Traced, exclude: Sequence[str]) -> str:
    inside = [module for module in traced.relations.modules if within(path, module)]
    hit = (glob for glob in exclude if any(is_excluded(module, glob) for module in inside))
    return next((f"excluded by {glob!r}" for glob in hit), "")


def _obstacle(path: str, reader: Reader, traced: Traced, seen: Mapping[str, Seen]) -> str:
    """Why a module cannot be taken out although its result is its input plus branches; empty if it can."""
    note = seen.get(path, Seen())
    if note.calls != 1:
        return f"called {note.calls} times in one forward pass"
    if not note.returns_tensor:
        return "it returns more than one tensor"
    if note.argument is None:
        return "no argument of it is like its result"
    for name, owners in traced.relations.owners.items():
        if len({within(path, owner) for owner in owners}) == 2:
            return f"it shares {name} with a module outside"
    signature = traced.program.graph_signature
    held = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    for node in reader.place:
        read = within(path, held.get(node.name, "")) if node.op == "placeholder" else False
        if read and any(not reader.inside(user, path) for user in node.users):
            return f"{held[node.name]} is read outside of it"
    return ""


def _others(found: list[Residual], chosen: list[Residual]) -> list[Residual]:
    """Residual modules that are no blocks, around none and inside none."""
    taken = [item.path for item in chosen]
    return [
        item
        for item in found
        if item not in chosen
        and not any(within(path, item.path) or within(item.path, path) for path in taken)
        and not any(within(item.path, other.path) and other is not item for other in found)
    ]


def _alike(chosen: list[Residual], reader: Reader, traced: Traced) -> list[str]:
    """Other modules of the classes of blocks, with one result."""
    modules = traced.relations.modules
    kinds = {type(modules[item.path]) for item in chosen if item.path in modules}
    return [path for path, nodes in reader.exits.items() if len(nodes) == 1 and type(modules.get(path)) in kinds]


def _plan(path: str, structure: Structure, seen: Seen, batch: int, first: bool) -> BlockPlan:
    inside = sum(
        term.coefficient * math.prod(structure.tensors[term.weight].shape)
        for term in structure.terms
        if within(path, term.weight)
    )
    inside += sum(
        product.coefficient * math.prod(length for _, length in product.axes)
        for product in structure.products
        if within(path, product.module)
    )
    assert seen.argument is not None
    return BlockPlan(path, seen.argument, first, seen.flops / batch - inside)


def _shape(node: Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    return tuple(value.shape[1:]) if isinstance(value, Tensor) else ()
