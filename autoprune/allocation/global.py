"""One ranking over the whole network, as in Liu et al. 2017 (1708.06519) and Molchanov et al. 2019 (1906.10771).

All units of all scored groups are sorted by normalised score, lowest first; at strength s the first 1 - 0.5 ** s of
them go.
"""

from __future__ import annotations

from dataclasses import dataclass

from autoprune.allocation._base import Allocation, AllocationContext, Path
from autoprune.allocation._ranking import global_path


@dataclass(frozen=True, kw_only=True)
class Global(Allocation):
    """Remove the units that score lowest in the whole network."""

    def path(self, context: AllocationContext) -> Path:
        return global_path(context.structure, context.scores)
