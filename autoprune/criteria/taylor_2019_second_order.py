"""Second-order Taylor importance of gates. Molchanov et al., CVPR 2019, arXiv 1906.10771, section 3.1.

    score_C[c] = mean over mini-batches b of (dL_b / dg_C[c] - d2L_b / dg_C[c]2 / 2) ** 2

C units of the group; g is a gate of one on the unit where it is read, L_b the mean loss of mini-batch b with batch
statistics. Unit: loss ** 2. Comparable between groups without normalisation. The second derivative is exact and of this
gate alone, as in the authors' code; the paper's row of the Hessian would not be the loss of removing one unit. It costs
one backward pass for every unit and mini-batch, so that few mini-batches are looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from autoprune.criteria._base import Criterion
from autoprune.evidence import Evidence, ModelEvidence
from autoprune.graph import Group


@dataclass(frozen=True, kw_only=True)
class Taylor2019SecondOrder(Criterion):
    """Remove units whose removal would change the loss least, to second order."""

    needs: ClassVar[frozenset[str]] = frozenset({Evidence.GATE_CURVATURE})

    def score(self, group: Group, evidence: ModelEvidence) -> Tensor:
        gradient_BC, curvature_BC = evidence.gate_curvature(group)
        return (gradient_BC - curvature_BC / 2).square().mean(dim=0)
