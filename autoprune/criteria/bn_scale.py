"""Batch-norm scale, the score of network slimming. Liu et al., ICCV 2017, arXiv 1708.06519.

    score_C[c] = mean over the group's normalisations of |gamma_C[c]|

C units of the group. Unit: none (a scale). The sign does not matter: a negative scale is as important.
This is the score alone; the paper also trains with an L1 penalty on gamma: the regulariser `network_slimming`.
Extends the paper to units written by several normalised layers: the mean over them.
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
from autoprune.graph import Group, Role


@dataclass(frozen=True, kw_only=True)
class BnScale(Criterion):
    """Remove units that their normalisation scales down."""

    needs: ClassVar[frozenset[str]] = frozenset({Evidence.WEIGHTS})

    streams: bool = choice(True, options=(True, False), help="score residual streams; otherwise they stay whole")

    def score(self, group: Group, evidence: ModelEvidence) -> Tensor:
        if group.is_stream and not self.streams:
            raise NotApplicable(f"bn_scale leaves residual streams whole (streams: false), and {group.name!r} is one")
        scales = [evidence.slices(p).abs().mean(dim=1) for p in group.places_with(Role.NORM_WEIGHT)]
        if not scales:
            raise NotApplicable(f"bn_scale needs a normalisation with a scale; group {group.name!r} has none")
        return torch.stack(scales).mean(dim=0)
