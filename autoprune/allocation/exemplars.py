"""As many units as affinity propagation finds exemplars. Lin et al., "EPruner", TNNLS 2022, arXiv 2101.07985.

    kept_g(t) = number of exemplars of group g at the preference t * beta_stage(g) * median similarity

The larger a beta, the fewer exemplars. With one beta for the whole network, as in the paper's text, it decides how much
goes from every group; the authors' code sets larger ones for late layers by hand, which is a beta for each stage. The
path raises t from 0, where everyone stays, as far as the target asks, so that of the betas only their relation counts.
Which units stay is the criterion's affair: with the criterion `epruner` they are the exemplars, as in the paper. Looks
at weights only.

Numbers of exemplars are those at the betas tried, interpolated in between (`autoprune/evidence/exemplars.py`). Groups
without weights that produce them stay whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from autoprune.allocation._base import Allocation, AllocationContext, Path
from autoprune.allocation._ranking import global_path
from autoprune.errors import NotApplicable
from autoprune.evidence import Evidence, ModelEvidence
from autoprune.fields import hyperparameters, per_item
from autoprune.graph import Group


@dataclass(frozen=True, kw_only=True)
class Exemplars(Allocation):
    """Keep as many units of each group as it takes to stand for all of them."""

    needs: ClassVar[frozenset[str]] = frozenset({Evidence.EXEMPLARS})

    beta: float | Mapping[str, float] = per_item(
        0.75,
        of="stage",
        valid=(0.1, 5.0),
        search=(0.4, 1.2),
        unmatched=0.75,
        help="preference coefficient of a stage, relative to the other stages; larger: fewer exemplars",
    )

    def path(self, context: AllocationContext) -> Path:
        evidence = context.evidence_for(self.name)
        stages = context.structure.stages
        declared = hyperparameters(self)["beta"]
        names = list(dict.fromkeys(stages.values()))
        own = declared.resolve("exemplars.beta", self.beta, names)  # type: ignore[union-attr]
        found = {g.name: _betas(g, evidence) for g in context.structure.groups if g.name in context.scores}
        # A unit's beta is the largest at which the group still keeps that many: one threshold on it is one t.
        keys = {name: betas / own[stages[name]] for name, betas in found.items() if betas is not None}
        return global_path(context.structure, keys)


def _betas(group: Group, evidence: ModelEvidence) -> Tensor | None:
    try:
        return evidence.exemplar_betas(group)
    except NotApplicable:
        return None
