"""As many units as affinity propagation finds exemplars. Lin et al., "EPruner", TNNLS 2022, arXiv 2101.07985.

    kept_g(beta) = number of exemplars of group g at the preference beta * median similarity

One beta for the whole network decides how much goes from every group: the larger, the fewer exemplars. The path raises
beta from 0, where everyone stays, as far as the target asks. Which units stay is the criterion's affair: with the
criterion `epruner` they are the exemplars, as in the paper. Looks at weights only.

Numbers of exemplars are those at the betas tried, interpolated in between (`autoprune/evidence/exemplars.py`). Groups
without weights that produce them stay whole. The authors set another beta for late layers by hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from autoprune.allocation._base import Allocation, AllocationContext, Path
from autoprune.allocation._ranking import global_path
from autoprune.errors import NotApplicable
from autoprune.evidence import Evidence, ModelEvidence
from autoprune.graph import Group


@dataclass(frozen=True, kw_only=True)
class Exemplars(Allocation):
    """Keep as many units of each group as it takes to stand for all of them."""

    needs: ClassVar[frozenset[str]] = frozenset({Evidence.EXEMPLARS})

    def path(self, context: AllocationContext) -> Path:
        evidence = context.evidence_for(self.name)
        found = {g.name: _betas(g, evidence) for g in context.structure.groups if g.name in context.scores}
        # A unit's beta is the largest at which the group still keeps that many: one threshold on it is one beta.
        return global_path(context.structure, {name: betas for name, betas in found.items() if betas is not None})


def _betas(group: Group, evidence: ModelEvidence) -> Tensor | None:
    try:
        return evidence.exemplar_betas(group)
    except NotApplicable:
        return None
