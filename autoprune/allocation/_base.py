"""The contract of the room `allocation`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from autoprune.errors import BadRecipe
from autoprune.rooms import Method

if TYPE_CHECKING:
    from torch import Tensor

    from autoprune.evidence import ModelEvidence
    from autoprune.graph import Structure
    from autoprune.tasks import Evaluation

Path = Callable[[float], NDArray[np.float64]]
"""Strength (0 and up) to the kept units of every group, (G,), fractional, in the order of `structure.groups`.

Strength 0 keeps everything; more strength never keeps more. Strength s of a uniform allocation keeps 0.5 ** s of every
group; other paths are paced alike, so that channels and ranks can be repaired to a target by one common strength.
"""

Measure = Callable[[Mapping[str, int], int], "Evaluation"]
"""Kept units by group (the others whole) and a number of samples, to loss and accuracy on that many training samples.

The uncut model is really cut by the recipe's scores, and corrected as the recipe corrects it, without any training.
"""

Cost = Callable[[NDArray[Any]], float]
"""Kept units of every group, (G,), to the cost that the target limits."""


@dataclass(frozen=True, kw_only=True)
class AllocationContext:
    """What an allocation looks at.

    scores: normalised, (C,) by group; groups without scores stay whole. structure: of the model to be cut next.
    full_sizes: the groups' sizes before the first cut of a schedule. budget: the cost that the next cut may leave; the
    repair meets it exactly, together with ranks and other limits. min_keep_fraction: of full sizes. What an allocation
    does not declare in `needs` may be missing: `evidence` about the model to be cut, and `measure` about the one before
    the first cut.
    """

    scores: Mapping[str, Tensor]
    structure: Structure
    full_sizes: Mapping[str, int]
    cost: Cost
    budget: float
    min_keep_fraction: float = 0.0
    evidence: ModelEvidence | None = None
    measure: Measure | None = None

    @staticmethod
    def of(scores: Mapping[str, Tensor], structure: Structure, flops_fraction: float = 0.5) -> AllocationContext:
        """Return the context of an uncut model of which nothing but the scores is known."""
        return AllocationContext(
            scores=scores,
            structure=structure,
            full_sizes={g.name: g.size for g in structure.groups},
            cost=structure.total_flops,
            budget=flops_fraction * structure.total_flops(structure.sizes),
        )

    def evidence_for(self, allocation: str) -> ModelEvidence:
        """Return the evidence. Raises BadRecipe where there is none."""
        if self.evidence is None:
            raise BadRecipe(f"allocation {allocation!r} looks at evidence of the model, and was given none")
        return self.evidence

    def measure_for(self, allocation: str) -> Measure:
        """Return the way to measure. Raises BadRecipe where there is none."""
        if self.measure is None:
            raise BadRecipe(f"allocation {allocation!r} measures cut models, and was given no way to")
        return self.measure


class Allocation(Method):
    """Decides how much goes from each group, up to the one scalar that the repair finds."""

    room: ClassVar[str] = "allocation"

    def measured_samples(self, groups: int) -> int:
        """Return how many samples its measurements of a model of so many groups are evaluated on, at most."""
        return 0

    @abstractmethod
    def path(self, context: AllocationContext) -> Path:
        """Return the path for these scores. Groups without scores stay whole. Raises BadRecipe."""
