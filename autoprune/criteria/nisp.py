"""Neuron importance score propagation. Yu et al., "NISP", CVPR 2018, arXiv 1711.05908, equations 11 to 21.

    s_final (D): a ranking of the final responses, which the last layer reads
    s_before = |B|^T s_behind for the linear map B of every operator, from the output to the input, biases left out
    score_C[c] = sum of s over the positions of unit c, and over the group's producers

inf_fs: Inf-FS over the training samples (`alpha` weighs spread against redundancy, `damping` short paths against long);
magnitude: sum_k |W_KD[k, d]| of the last layer; uniform: 1. Every layer that a score passes multiplies it, by 1e82 in
all in a deep network, so that scores compare within a group alone: `layer_norm` divides them by the mean of their
group. Unit: none; with `layer_norm: none` that of s_final.

Units that score lowest in their group pass nothing on, as many as `keep_fraction` leaves out: the paper prunes while
it propagates, with amounts known beforehand, where here the allocation decides after the scores; 1 turns it off. A
residual stream, whose producers score at different depths, is decided by a first sweep without it. Scores stand behind
norm and activation. What the paper leaves open (Inf-FS scaled to [0, 1], damping 0.9, max pooling, operators beyond
convolutional networks) is in the helpers' text; where an operator cannot pass a score the method does not apply.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from autoprune.criteria._base import Criterion
from autoprune.criteria._feature_ranking import inf_fs
from autoprune.errors import NotApplicable
from autoprune.evidence import Evidence, ModelEvidence, Sweep
from autoprune.fields import choice, real
from autoprune.graph import Group
from autoprune.normalisation import normalise


@dataclass(frozen=True, kw_only=True)
class Nisp(Criterion):
    """Remove units on which the important final responses can depend least."""

    needs: ClassVar[frozenset[str]] = frozenset({Evidence.FINAL_RESPONSES})

    final: str = choice(
        "inf_fs", options=("inf_fs", "magnitude", "uniform"), help="ranking of the responses that the last layer reads"
    )
    alpha: float = real(0.5, valid=(0.0, 1.0), search=(0.0, 1.0), help="inf_fs: spread of a response against novelty")
    damping: float = real(0.9, valid=(0.01, 0.999), search=(0.9, 0.99), help="inf_fs: weight of longer paths")
    keep_fraction: float = real(
        0.7, valid=(0.01, 1.0), search=(0.3, 1.0), help="share of a group's units that pass scores on"
    )
    pool: str = choice(
        "uniform", options=("uniform", "sum"), search=("uniform",), help="what max pooling hands on: shares, or all"
    )

    layer_norm: str = choice(
        "mean",
        options=("mean", "none"),
        search=("mean",),
        help="divide the scores of a group by their mean, or leave them",
    )

    def score(self, group: Group, evidence: ModelEvidence) -> Tensor:
        def final(weight: str, weight_KD: Tensor) -> Tensor:
            if self.final == "inf_fs":
                return inf_fs(evidence.final_responses(weight), self.alpha, self.damping)
            return weight_KD.sum(dim=0) if self.final == "magnitude" else torch.ones_like(weight_KD[0])

        label = "/".join(map(str, self.config().values()))
        found = evidence.propagated(label, final, Sweep(self.keep_fraction, self.pool))
        if group.name not in found:
            raise NotApplicable(f"nisp scores what a layer writes; no layer of this model writes group {group.name!r}")
        score_C = found[group.name]
        return normalise("mean", {group.name: score_C})[group.name] if self.layer_norm == "mean" else score_C
