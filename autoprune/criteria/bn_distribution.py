"""Activation that batch norm promises. Oh et al., WACV 2022, arXiv 2112.01155.

    z_C ~ N(b_C, g_C ** 2),  b = sum of beta,  g ** 2 = sum of gamma ** 2 * var / (var + eps)  over the norms added up
    score_C[c] = E|f(z_C[c])|  for the activation f that follows, mean over what the group's layers read

C units of the group. Unit: that of the activations. For ReLU E|f(z)| = b * Phi(b / g) + g * phi(b / g). No data are
needed. One norm behind a layer is the paper's case; that its score is the mean of this distribution is our reading of
its abstract.

Extends the paper: a residual stream is the sum of the norms that write it, taken as independent; every layer that reads
it sees the sum so far, rectified where a ReLU stands. A chain through a depthwise convolution has the moments of the
norm read last; in a pre-activation network the norm that reads the stream counts. ReLU6, leaky ReLU and no activation
have closed forms, smooth activations 64-point quadrature. `effective_scale` lets a dead convolution (var near 0) emit
the constant beta, as it does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from autoprune.criteria._base import Criterion
from autoprune.errors import NotApplicable
from autoprune.evidence import Evidence, ModelEvidence
from autoprune.evidence.gaussian import moments, normed_sum
from autoprune.evidence.readings import OTHER, Reading
from autoprune.fields import choice
from autoprune.graph import Group


@dataclass(frozen=True, kw_only=True)
class BnDistribution(Criterion):
    """Remove units whose activations are small by what their batch norm says."""

    needs: ClassVar[frozenset[str]] = frozenset({Evidence.WEIGHTS, Evidence.READINGS})

    score_by: str = choice(
        "mean",
        options=("mean", "rms", "std", "active", "gamma"),
        help="expected magnitude, root mean square, spread, share above zero, or the scale alone",
    )
    effective_scale: bool = choice(True, options=(True, False), help="scale by sqrt(var / (var + eps))")
    downstream: bool = choice(False, options=(False, True), help="multiply by the norm of the weights that read it")

    def score(self, group: Group, evidence: ModelEvidence) -> Tensor:
        found = evidence.readings(group)
        if not found:
            raise NotApplicable(f"bn_distribution needs a batch norm before a layer; group {group.name!r} has none")
        unknown = [r for r in found if r.activation == OTHER]
        if unknown:
            readers = ", ".join(p.module for p in unknown[0].readers)
            raise NotApplicable(f"bn_distribution has no moments for the activation that {readers} reads")
        return torch.stack([self._one(group, evidence, reading) for reading in found]).mean(dim=0)

    def _one(self, group: Group, evidence: ModelEvidence, reading: Reading) -> Tensor:
        scale = self.effective_scale and self.score_by != "gamma"
        b_CM, g_CM = normed_sum(group, evidence, reading, effective_scale=scale)
        made = moments(reading.activation, b_CM.flatten(), g_CM.flatten(), reading.slope)
        values = {
            "mean": made.magnitude,
            "rms": made.square.sqrt(),
            "std": made.std,
            "active": made.active,
            "gamma": g_CM.flatten(),
        }
        score_C = values[self.score_by].view_as(b_CM).mean(dim=1)
        if self.downstream:
            score_C = score_C * sum(evidence.slices(p).square().sum(dim=1) for p in reading.readers).sqrt()  # type: ignore[union-attr]
        return score_C
