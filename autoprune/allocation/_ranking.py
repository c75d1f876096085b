"""Helpers that allocations share."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from autoprune.allocation._base import Path
from autoprune.graph import Structure


def power_path(structure: Structure, keep_fractions: Mapping[str, float]) -> Path:
    """Return the path that keeps size * keep_fraction ** strength of every named group and all of the others.

    The order of the groups' keep fractions is the same at every strength.
    """
    fractions_G = np.array([keep_fractions.get(g.name, 1.0) for g in structure.groups])
    sizes_G = np.array([g.size for g in structure.groups], dtype=np.float64)

    def path(strength: float) -> NDArray[np.float64]:
        kept: NDArray[np.float64] = sizes_G * fractions_G**strength
        return kept

    return path
