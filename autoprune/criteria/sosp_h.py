"""Second order with all units together, by one Hessian product. Nonnenmacher et al., ICLR 2022, arXiv 2110.11395.

    score_C[c] = |theta_c . g| + |theta_c . H . sum_t theta_t| / 2

C units of the group, theta_c the weights and biases that produce unit c, t all units of all groups, g and H gradient
and Hessian of the mean loss in eval mode. Unit: loss. It stands for the loss change when many units go together: units
whose removals cancel score low together, so that a score says little about removing one unit alone. Comparable between
groups without normalisation, as in the paper.

What the ranking hardly takes from is a bottleneck: `autoprune bottlenecks` reports those and writes studies of the
model with them widened, the paper's second step.

The members of a residual stream or a depthwise chain are one unit, added up before the absolute values. Whether norms
belong to a unit is our choice; the paper's was not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from autoprune.criteria._base import Criterion
from autoprune.errors import NotApplicable
from autoprune.evidence import Evidence, ModelEvidence
from autoprune.fields import choice
from autoprune.graph import Group, Role


@dataclass(frozen=True, kw_only=True)
class SospH(Criterion):
    """Remove the units whose joint removal changes the loss least, to second order."""

    needs: ClassVar[frozenset[str]] = frozenset({Evidence.UNIT_CURVATURE})

    include_norm: bool = choice(False, options=(False, True), help="count scale and shift of norms among the weights")

    def score(self, group: Group, evidence: ModelEvidence) -> Tensor:
        if not group.places_with(Role.OUTPUT, Role.DEPTHWISE):
            raise NotApplicable(f"sosp_h needs weights that produce the units; group {group.name!r} has none")
        gradient_C, product_C = evidence.unit_curvature(group, norms=self.include_norm)
        return gradient_C.abs() + product_C.abs() / 2
