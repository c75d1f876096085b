"""Scores from the weights that produce a unit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from autoprune.errors import NotApplicable
from autoprune.evidence.store import ModelEvidence
from autoprune.graph import Group, Place, Role


def mean_over_producers(group: Group, evidence: ModelEvidence, score_of: Callable[[Tensor], Tensor]) -> Tensor:
    """Return (C,): the mean over the group's producing layers of `score_of` their weights (C, K), as `mean_of_layers`.

    Raises NotApplicable without producing weights.
    """
    return mean_of_layers([score_of(evidence.slices(p)) for p in producing_places(group)])


def producing_places(group: Group) -> tuple[Place, ...]:
    """Return where weights produce the units, depthwise ones if no others do. Raises NotApplicable without any."""
    places = group.places_with(Role.OUTPUT) or group.places_with(Role.DEPTHWISE)
    if not places:
        raise NotApplicable(f"group {group.name!r} has no producing weights to score")
    return places


def mean_of_layers(scores: Sequence[Tensor]) -> Tensor:
    """Return (C,): the mean over layers of scores (C,) of the same units.

    Layers of one residual stream differ in scale by their fan-in, so every layer's scores are first brought to the
    common mean; a single layer's scores are returned as they are.
    """
    if len(scores) == 1:
        return scores[0]
    scores_LC = torch.stack(tuple(scores))
    means_L1 = scores_LC.mean(dim=1, keepdim=True)
    safe_L1 = torch.where(means_L1 > 0, means_L1, torch.ones_like(means_L1))
    return (scores_LC / safe_L1).mean(dim=0) * means_L1.mean()
