"""One ranking over the whole network, as in Liu et al. 2017 (1708.06519) and Molchanov et al. 2019 (1906.10771).

All units of all scored groups are sorted by normalised score, lowest first; at strength s the first 1 - 0.5 ** s of
them go. Ties break by the order of the groups, then by index, so that the result does not depend on the sort.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from autoprune.allocation._base import Allocation, Path
from autoprune.graph import Structure


@dataclass(frozen=True, kw_only=True)
class Global(Allocation):
    """Remove the units that score lowest in the whole network."""

    def path(self, scores: Mapping[str, Tensor], structure: Structure) -> Path:
        scored = [(i, scores[g.name]) for i, g in enumerate(structure.groups) if g.name in scores]
        owner_U = np.concatenate([np.full(len(s), i) for i, s in scored])
        score_U = np.concatenate([s.detach().cpu().double().numpy() for _, s in scored])
        removed_first_U = owner_U[np.argsort(score_U, kind="stable")]
        sizes_G = np.array([g.size for g in structure.groups], dtype=np.float64)

        def path(strength: float) -> NDArray[np.float64]:
            count = int((1 - 0.5**strength) * len(removed_first_U))
            gone_G = np.bincount(removed_first_U[:count], minlength=len(sizes_G))
            return sizes_G - gone_G

        return path
