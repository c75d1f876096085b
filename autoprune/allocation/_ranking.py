"""Helpers that allocations share: paths, and how they are paced."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from autoprune.allocation._base import Path
from autoprune.graph import Structure

_BISECTIONS = 60


def sizes_of(structure: Structure) -> NDArray[np.float64]:
    """Return the groups' sizes, (G,)."""
    return structure.sizes.astype(np.float64)


def power_path(structure: Structure, keep_fractions: Mapping[str, float]) -> Path:
    """Return the path that keeps size * keep_fraction ** strength of every named group and all of the others.

    The order of the groups' keep fractions is the same at every strength.
    """
    fractions_G = np.array([keep_fractions.get(g.name, 1.0) for g in structure.groups])
    sizes_G = sizes_of(structure)

    def path(strength: float) -> NDArray[np.float64]:
        kept: NDArray[np.float64] = sizes_G * fractions_G**strength
        return kept

    return path


def global_path(structure: Structure, scores: Mapping[str, Tensor]) -> Path:
    """Return the path along one ranking of all scored units, lowest first: at strength s 1 - 0.5 ** s of them go.

    Ties break by the order of the groups, then by index, so that the result does not depend on the sort.
    """
    scored = [(i, scores[g.name]) for i, g in enumerate(structure.groups) if g.name in scores]
    owner_U = np.concatenate([np.full(len(s), i) for i, s in scored])
    score_U = np.concatenate([s.detach().cpu().double().numpy() for _, s in scored])
    removed_first_U = owner_U[np.argsort(score_U, kind="stable")]
    sizes_G = sizes_of(structure)

    def path(strength: float) -> NDArray[np.float64]:
        count = int((1 - 0.5**strength) * len(removed_first_U))
        gone_G = np.bincount(removed_first_U[:count], minlength=len(sizes_G))
        return sizes_G - gone_G

    return path


def lenient_path(structure: Structure, keep_fractions: Mapping[str, float]) -> Path:
    """Return the path of rules that spare some groups: those with keep fraction 1 are cut only after the others.

    First size * keep_fraction ** t, until every group below 1 is down to half a unit; then the spared ones shrink, all
    alike. Paced so that at strength s 0.5 ** s of the units of all named groups stay.
    """
    named_G = np.array([g.name in keep_fractions for g in structure.groups])
    fractions_G = np.array([keep_fractions.get(g.name, 1.0) for g in structure.groups])
    sizes_G = sizes_of(structure)
    cut_G, spared_G = fractions_G < 1, named_G & (fractions_G >= 1)
    first = np.log(0.5 / sizes_G[cut_G]) / np.log(np.maximum(fractions_G[cut_G], 1e-6))
    until = float(first.max()) if cut_G.any() else 0.0

    def curve(t: float) -> NDArray[np.float64]:
        kept: NDArray[np.float64] = sizes_G * fractions_G**t
        return np.where(spared_G, sizes_G * 0.5 ** max(0.0, t - until), kept)

    return paced(curve, structure, named_G)


def paced(curve: Path, structure: Structure, named_G: NDArray[np.bool_]) -> Path:
    """Return the same way through amounts, paced so that at strength s 0.5 ** s of the units of named groups stay.

    curve: like a path, with any pace; it has to empty the named groups in the end.
    """
    total = float(sizes_of(structure)[named_G].sum())

    def path(strength: float) -> NDArray[np.float64]:
        wanted = 0.5**strength * total
        if wanted >= total:
            return curve(0.0)
        weak, strong = 0.0, 1.0
        while curve(strong)[named_G].sum() > wanted:
            weak, strong = strong, 2 * strong
        for _ in range(_BISECTIONS):
            middle = (weak + strong) / 2
            weak, strong = (weak, middle) if curve(middle)[named_G].sum() <= wanted else (middle, strong)
        return curve(strong)

    return path
