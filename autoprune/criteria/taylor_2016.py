"""Activation times gradient. Molchanov et al., ICLR 2017, arXiv 1611.06440, sections 2.2 and 2.3.

    theta_C[c] = mean over samples n of |1/M * sum_hw z[n, c] * dL_n/dz[n, c]|
    score_C[c] = theta_C[c] / (|theta_C|_2 + 1e-8) - flops_lambda * F

C units of the group, z the feature map that the next layer reads, M its positions where it is computed, L_n the loss of
sample n in eval mode. Unit: loss, after `layer_norm` none. The absolute value stands after the mean over positions and
before the mean over samples. F are the FLOPs of one map: in MFLOPs, as in the paper (for images of 224 pixels), or
relative to the dearest group of the model.

Extends the paper: the maps of a residual stream share one gate, so that what its readers see is added up before the
absolute value; M and F are the mean and the sum over the producers. After a cut F follows the layers' new widths.
With a cost term the recipe's own normalisation has to be `none`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from autoprune.criteria._base import Criterion
from autoprune.criteria._layers import flops_of_a_map, positions_of
from autoprune.evidence import Evidence, ModelEvidence
from autoprune.fields import choice, real
from autoprune.graph import Group

_TINY = 1e-8


@dataclass(frozen=True, kw_only=True)
class Taylor2016(Criterion):
    """Remove units whose removal would change every sample's loss least, to first order, and that cost most."""

    needs: ClassVar[frozenset[str]] = frozenset({Evidence.EXAMPLE_GATE_GRADIENTS})

    layer_norm: str = choice(
        "l2",
        options=("l2", "none"),
        search=("l2",),
        help="divide the scores of a group by their Euclidean norm, or leave them",
    )
    flops_lambda: float = real(
        0.0, valid=(0.0, 1e3), search=(1e-4, 1e-1), log=True, help="weight of the cost that is subtracted"
    )
    cost_unit: str = choice(
        "max", options=("max", "mflops"), help="FLOPs of a map relative to the dearest, or in MFLOPs as in the paper"
    )

    def score(self, group: Group, evidence: ModelEvidence) -> Tensor:
        gradient_NC = evidence.example_gate_gradients(group)
        theta_C = gradient_NC.abs().mean(dim=0) / positions_of(group, evidence.structure)
        if self.layer_norm == "l2":
            theta_C = theta_C / (theta_C.norm() + _TINY)
        return theta_C - self.flops_lambda * self._cost(group, evidence) if self.flops_lambda else theta_C

    def _cost(self, group: Group, evidence: ModelEvidence) -> float:
        cost = flops_of_a_map(group, evidence.structure)
        if self.cost_unit == "mflops":
            return cost / 1e6
        dearest = max(flops_of_a_map(g, evidence.structure) for g in evidence.structure.groups)
        return cost / dearest if dearest else 0.0
