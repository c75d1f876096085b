"""L1 norm of a unit's weights. Li et al., ICLR 2017, arXiv 1608.08710.

    score_C[c] = mean over producing layers of sum_k |weight_CK[c, k]|

C units of the group, K the other axes flattened. Unit: that of the weights. Bias and batch norm are not part of it.
Departs from the paper: layers tied by an addition are averaged, where the paper lets the projection decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from autoprune.criteria._base import Criterion
from autoprune.evidence import Evidence, ModelEvidence, mean_over_producers
from autoprune.graph import Group


@dataclass(frozen=True, kw_only=True)
class L1Norm(Criterion):
    """Remove units whose producing weights are small in absolute sum."""

    needs: ClassVar[frozenset[str]] = frozenset({Evidence.WEIGHTS})

    def score(self, group: Group, evidence: ModelEvidence) -> Tensor:
        return mean_over_producers(group, evidence, lambda weight_CK: weight_CK.abs().sum(dim=1))
