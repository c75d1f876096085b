"""Take groups out of a structure, with the reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np

from autoprune.graph.parts import AxisPlan, FrozenGroup, IntArray

if TYPE_CHECKING:
    from autoprune.graph.structure import Structure


def without(structure: Structure, frozen: Mapping[str, FrozenGroup]) -> Structure:
    """The structure with these groups frozen."""
    if not frozen:
        return structure
    less = without_groups(structure, frozen)
    return dataclasses.replace(less, frozen=(*structure.frozen, *frozen.values()))


def without_groups(structure: Structure, gone: Collection[str]) -> Structure:
    """The structure without these groups; what they hold stays as it is."""
    if not gone:
        return structure
    stays = np.array([name not in gone for name in structure.names])
    unit_stays = np.repeat(stays, structure.sizes)
    number = np.where(unit_stays, np.cumsum(unit_stays) - 1, -1).astype(np.int64)
    axes = tuple(_renumbered(plan, number) for plan in structure.axes)
    counters = tuple(_renumbered(plan, number) for plan in structure.counters)
    return dataclasses.replace(
        structure,
        names=tuple(name for name in structure.names if name not in gone),
        group_sizes=tuple(
            size for name, size in zip(structure.names, structure.group_sizes, strict=True) if name not in gone
        ),
        axes=tuple(plan for plan in axes if (plan.units >= 0).any()),
        kinds=tuple(kind for name, kind in zip(structure.names, structure.kinds, strict=True) if name not in gone),
        counters=tuple(plan for plan in counters if (plan.units >= 0).any()),
    )


def _renumbered(plan: AxisPlan, number: IntArray) -> AxisPlan:
    units = np.where(plan.units < 0, -1, number[plan.units]).astype(np.int64)
    units.setflags(write=False)
    return dataclasses.replace(plan, units=units)
