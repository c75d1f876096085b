"""Groups that share an axis, as heads do with the dimensions inside them, told apart for verification."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from autoprune.graph.structure import Structure


def apart(structure: Structure) -> list[set[str]]:
    """Sets of groups, each group that shares an axis in one of them, in none of them two that share one.

    In the order of the structure: a group goes into the first set where it meets no other.
    """
    meets: dict[int, set[int]] = {}
    for plans in structure.plans_by_axis.values():
        if len(plans) > 1:
            found = {group for plan in plans for group in _groups(structure, plan.units)}
            for first, second in itertools.permutations(found, 2):
                meets.setdefault(first, set()).add(second)
    sets: list[set[int]] = []
    for group in sorted(meets):
        place = next((members for members in sets if not members & meets[group]), None)
        if place is None:
            place = set()
            sets.append(place)
        place.add(group)
    return [{structure.names[group] for group in members} for members in sets]


def _groups(structure: Structure, units: np.ndarray) -> list[int]:
    found = np.unique(units[units >= 0])
    groups: list[int] = np.unique(np.searchsorted(structure.offsets, found, side="right") - 1).tolist()
    return groups
