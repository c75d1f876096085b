"""Random scores of blocks: the reference that every depth criterion has to beat.

score[b] ~ uniform(0, 1), drawn from the trial's seed and the block's name
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autoprune.depth._base import DepthCriterion
from autoprune.evidence import ModelEvidence
from autoprune.graph import Block


@dataclass(frozen=True, kw_only=True)
class Random(DepthCriterion):
    """Skip blocks by lot."""

    def score(self, blocks: Sequence[Block], evidence: ModelEvidence) -> Tensor:
        generators = (evidence.generator(f"depth/{block.name}") for block in blocks)
        return torch.tensor([float(torch.rand((), generator=g, dtype=torch.float64)) for g in generators]).double()
