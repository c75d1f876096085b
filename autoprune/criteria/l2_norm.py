"""L2 norm of a unit's weights, the usual variant of Li et al., ICLR 2017, arXiv 1608.08710 (appendix 6).

    score_C[c] = mean over producing layers of sqrt(sum_k weight_CK[c, k] ** 2)

C units of the group, K the other axes flattened. Unit: that of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from autoprune.criteria._base import Criterion
from autoprune.evidence import Evidence, ModelEvidence, mean_over_producers
from autoprune.graph import Group


@dataclass(frozen=True, kw_only=True)
class L2Norm(Criterion):
    """Remove units whose producing weights are small in Euclidean norm."""

    needs: ClassVar[frozenset[str]] = frozenset({Evidence.WEIGHTS})

    def score(self, group: Group, evidence: ModelEvidence) -> Tensor:
        return mean_over_producers(group, evidence, lambda weight_CK: weight_CK.norm(dim=1))
