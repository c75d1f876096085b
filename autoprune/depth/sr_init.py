"""Accuracy lost when a block is re-initialised. Tang et al., "SR-init", ICASSP 2023, arXiv 2303.07677.

D[b] = acc_0 - mean over n_seeds random instances of acc_b

acc_0 accuracy of the model, acc_b with the whole state of block b (weights, scales, running statistics) taken from a
random instance; both in eval mode, in 0..1. A block that can be random costs little and goes first; there is no
training in between. Unit: share of samples, may be negative.

The instances are the same for every trial, numbered from 1, so that drops are measured once per base model. Departs
from the paper: accuracy on held-out training data, where the reference looks at the test set; parameters of modules
that have no initialiser of their own (layer scale, position tables) are redrawn with their mean and deviation. First
units of a stage that change the shape can never go: the reference would leave the unit then in first place random.
Cost: (blocks * n_seeds + 1) evaluations of the samples, no gradients, one extra copy of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autoprune.depth._base import DepthCriterion
from autoprune.evidence import ModelEvidence
from autoprune.fields import integer, real
from autoprune.graph import Block


@dataclass(frozen=True, kw_only=True)
class SrInit(DepthCriterion):
    """Skip blocks whose re-initialisation costs little accuracy."""

    n_seeds: int = integer(3, valid=(1, 100), search=(1, 5), help="random instances whose drops are averaged")
    score_samples: int = integer(
        2000, valid=(1, 10_000_000), search=(1000, 10_000), log=True, help="held-out samples that accuracy is taken on"
    )
    tau: float = real(1.0, valid=(-1.0, 1.0), search=(0.01, 0.8), help="a block with a larger drop stays")

    def score(self, blocks: Sequence[Block], evidence: ModelEvidence) -> Tensor:
        """Return the mean drop of each block. Raises LossNotFinite for a model without finite outputs."""
        drops_B = torch.zeros(len(blocks), dtype=torch.float64)
        names = [block.name for block in blocks]
        for instance in range(1, self.n_seeds + 1):
            drops = evidence.reinitialisation_drops(instance, self.score_samples)
            drops_B += torch.stack([drops[name] for name in names]) / self.n_seeds if names else drops_B
        return drops_B

    def may_go(self, scores: Tensor) -> Tensor:
        return scores <= self.tau
