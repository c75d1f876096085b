"""Random scores: the reference that every criterion has to beat.

score_C[c] ~ uniform(0, 1), drawn from the trial's seed and the group's name
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from autoprune.criteria._base import Criterion
from autoprune.evidence import ModelEvidence
from autoprune.graph import Group


@dataclass(frozen=True, kw_only=True)
class Random(Criterion):
    """Remove units by lot."""

    def score(self, group: Group, evidence: ModelEvidence) -> Tensor:
        return torch.rand(group.size, generator=evidence.generator(group.name), dtype=torch.float64)
