"""Relative Hessian trace, the score of HAP. Yu et al., WACV 2022, arXiv 2101.08940.

    score_C[c] = sum over producing layers of Tr(H_cc) / (2 * p) * sum_k weight_CK[c, k] ** 2
                 (coupling = union: their maximum)

C units of the group, K the other axes flattened, p = K numbers of one unit, H_cc the K x K block of the Hessian of the
mean loss in eval mode. Unit: loss; it reads as the rise of the loss when the unit's weights are set to zero at a
minimum, with the block replaced by its mean eigenvalue. Signed: a negative trace is pruned first. Comparable between
groups without normalisation. Traces by Hutchinson's estimate, the same sign vectors for all batches and layers.

Departs from the paper: layers tied by an addition, and the depthwise filter behind a channel, form one unit whose
scores are added up. The authors' code thresholds every layer alone, and a channel goes when all of its layers drop it:
that is the maximum, but for the rows of single layers, which their code sets to zero on the way. The factor 1/2 is
theirs, left out by the code. 32 probes, where the code has 3 or 300. The neural implant is the replacement `implant`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from autoprune.criteria._base import Criterion
from autoprune.errors import NotApplicable
from autoprune.evidence import Evidence, ModelEvidence
from autoprune.fields import choice
from autoprune.graph import Group, Place, Role


@dataclass(frozen=True, kw_only=True)
class Hap(Criterion):
    """Remove units whose weights are small where the loss is flat."""

    needs: ClassVar[frozenset[str]] = frozenset({Evidence.WEIGHTS, Evidence.HESSIAN_TRACES})

    coupling: str = choice(
        "group",
        options=("group", "union"),
        help="a unit of several layers: their scores added up, or the highest of them",
    )

    def score(self, group: Group, evidence: ModelEvidence) -> Tensor:
        places = group.places_with(Role.OUTPUT, Role.DEPTHWISE)
        if not places:
            raise NotApplicable(f"hap needs weights that produce the units; group {group.name!r} has none")
        scores = torch.stack([self._of(place, evidence) for place in places])
        return scores.sum(dim=0) if self.coupling == "group" else scores.amax(dim=0)

    def _of(self, place: Place, evidence: ModelEvidence) -> Tensor:
        weight_CK = evidence.slices(place)
        mean_eigenvalue_C = evidence.hessian_trace(place) / weight_CK.shape[1]
        return mean_eigenvalue_C / 2 * weight_CK.square().sum(dim=1)
