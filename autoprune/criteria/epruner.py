"""Exemplars of affinity propagation. Lin et al., IEEE TNNLS 33(12), 2022, arXiv 2101.07985.

    S[i, k] = -|w_i - w_k| ** 2,   preference of k = beta * median_i S[i, k]
    score_C[c] = the largest beta at which the group still keeps unit c

C units of the group, w_i the weights that produce unit i. Unit: none. A larger beta makes fewer exemplars, each layer
finding its own number. The paper sets one beta for the network: that is one threshold for these scores, so that a
global ranking without normalisation allocates as the paper does, at the beta that meets the target. No data needed.

Exemplars of different beta are not nested: at each beta as many units are kept as there are exemplars, first those that
stay exemplars longest. Several producing layers are clustered together, each divided by its mean filter norm; the
authors leave residual streams whole. The allocation `exemplars` has a beta for each stage, as theirs for late layers.
The thin network keeps weights and norms of the exemplars; their random start is the recovery `reinitialise`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from autoprune.criteria._base import Criterion
from autoprune.evidence import Evidence, ModelEvidence
from autoprune.graph import Group


@dataclass(frozen=True, kw_only=True)
class Epruner(Criterion):
    """Remove units that another unit of their layer stands for."""

    needs: ClassVar[frozenset[str]] = frozenset({Evidence.EXEMPLARS})

    def score(self, group: Group, evidence: ModelEvidence) -> Tensor:
        return evidence.exemplar_betas(group)
