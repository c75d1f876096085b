"""First-order Taylor importance of gates, example by example. Molchanov et al., CVPR 2019, arXiv 1906.10771, "FG".

    score_C[c] = mean over samples n of (dL_n / dg_C[c]) ** 2

C units of the group; g is a gate of one on the unit where it is read, L_n the loss of sample n in eval mode, since
batch statistics would mix the samples. Unit: loss ** 2. Comparable between groups without normalisation. Squares of
single samples do not depend on the batch size, as those of mini-batches do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from autoprune.criteria._base import Criterion
from autoprune.evidence import Evidence, ModelEvidence
from autoprune.graph import Group


@dataclass(frozen=True, kw_only=True)
class Taylor2019PerExample(Criterion):
    """Remove units whose removal would change the loss of single samples least, to first order."""

    needs: ClassVar[frozenset[str]] = frozenset({Evidence.EXAMPLE_GATE_GRADIENTS})

    def score(self, group: Group, evidence: ModelEvidence) -> Tensor:
        return evidence.example_gate_gradients(group).square().mean(dim=0)
