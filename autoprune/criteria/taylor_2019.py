"""First-order Taylor importance of gates. Molchanov et al., CVPR 2019, arXiv 1906.10771, equations 8 and 9.

    score_C[c] = mean over mini-batches b of (dL_b / dg_C[c]) ** 2

C units of the group; g is a gate of one on the unit, L_b the mean loss of mini-batch b with batch statistics, as in
training. Unit: loss ** 2. Comparable between groups without normalisation.

The gate sits where the unit is read: for a layer that reads it, dL/dg = sum(weight * dL/dweight) over the slice that
reads it, summed over all readers. Behind batch norm and ReLU this equals gamma * dL/dgamma + beta * dL/dbeta, the
paper's form, and it is also defined where no batch norm stands. The units of a residual stream share one gate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from autoprune.criteria._base import Criterion
from autoprune.evidence import Evidence, ModelEvidence
from autoprune.graph import Group


@dataclass(frozen=True, kw_only=True)
class Taylor2019(Criterion):
    """Remove units whose removal would change the loss least, to first order."""

    needs: ClassVar[frozenset[str]] = frozenset({Evidence.GATE_GRADIENTS})

    def score(self, group: Group, evidence: ModelEvidence) -> Tensor:
        return evidence.gate_gradients(group).square().mean(dim=0)
