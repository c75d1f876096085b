"""L1 norm of a unit's weights. Li et al., ICLR 2017, arXiv 1608.08710.

    score_C[c] = mean over producing layers of sum_k |weight_CK[c, k]|

C units of the group, K the other axes flattened. Unit: that of the weights. Bias and batch norm are not part of it.

streams: `sum` (ours) brings the layers that write a residual stream to a common mean and averages them; with `leader`
the shortcut decides, as in the paper: of the writers the one whose input other layers read too, such as a projection,
or the one that reads the model's input, such as a stem (more readers first, then graph order); with `whole` streams
are left alone, as in the paper's results.

strategy: `independent` looks at all weights; `greedy`, which the paper prefers when much goes, leaves out those that
read units which go from groups before, in graph order. Amounts follow the scores here, so that the lowest of each
group count as gone, as many as `keep_fraction` leaves out. A stream comes where it begins: what goes later inside its
blocks still counts in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from autoprune.criteria._base import Criterion
from autoprune.errors import NotApplicable
from autoprune.evidence import Evidence, ModelEvidence, mean_of_layers, producing_places
from autoprune.fields import choice, real
from autoprune.graph import Group, Place, Role


@dataclass(frozen=True, kw_only=True)
class L1Norm(Criterion):
    """Remove units whose producing weights are small in absolute sum."""

    needs: ClassVar[frozenset[str]] = frozenset({Evidence.WEIGHTS})

    streams: str = choice(
        "sum",
        options=("sum", "leader", "whole"),
        help="residual streams: scored by all that write them, by one, or not",
    )
    strategy: str = choice(
        "independent",
        options=("independent", "greedy"),
        help="count weights that read units which go, or leave them out",
    )
    keep_fraction: float = real(
        0.5, valid=(0.01, 1.0), search=(0.3, 0.9), help="greedy: share of a group's units that later groups still read"
    )

    def score(self, group: Group, evidence: ModelEvidence) -> Tensor:
        if self.strategy == "independent":
            return self._score(group, evidence)
        label = "/".join(map(str, self.config().values()))
        return evidence.remember(f"{label}/{group.name}", lambda: self._score(group, evidence))

    def _score(self, group: Group, evidence: ModelEvidence) -> Tensor:
        if group.is_stream and self.streams == "whole":
            raise NotApplicable(f"l1_norm leaves residual streams whole (streams: whole), and {group.name!r} is one")
        places = producing_places(group)
        if self.streams == "leader":
            places = (max(places, key=lambda place: _readers_of_input(place, evidence)),)
        gone = self._gone_before(group, evidence) if self.strategy == "greedy" else {}
        return mean_of_layers([_norm(place, evidence, gone) for place in places])

    def _gone_before(self, group: Group, evidence: ModelEvidence) -> dict[str, list[tuple[Place, Tensor]]]:
        """Return by weight where it reads units that go (R, m) from the groups before this one."""
        found: dict[str, list[tuple[Place, Tensor]]] = {}
        for other in evidence.structure.groups:
            if other.name == group.name:
                break
            try:
                score_C = self.score(other, evidence)
            except NotApplicable:
                continue
            keep = max(1, int(self.keep_fraction * other.size + 1e-9))
            gone_R = torch.sort(score_C, descending=True, stable=True).indices[keep:].cpu()
            for place in other.places_with(Role.INPUT):
                found.setdefault(place.tensor, []).append((place, torch.tensor(place.indices)[gone_R]))
        return found


def _norm(place: Place, evidence: ModelEvidence, gone: dict[str, list[tuple[Place, Tensor]]]) -> Tensor:
    """Return (C,): the absolute sum of each unit's weights, without those that read what is gone."""
    values = evidence.weight(place.tensor).double().abs()
    for read, indices in gone.get(place.tensor, ()):
        values = values.index_fill(read.axis, indices.flatten().to(values.device), 0.0)
    return values.movedim(place.axis, 0)[torch.tensor(place.indices, device=values.device)].flatten(1).sum(dim=1)


def _readers_of_input(place: Place, evidence: ModelEvidence) -> float:
    """Return how many weights read what a producer reads; infinite for what no group writes, as the model's input."""
    counts = [
        len({p.tensor for p in group.places_with(Role.INPUT)})
        for group in evidence.structure.groups
        if any(p.tensor == place.tensor for p in group.places_with(Role.INPUT))
    ]
    return max(counts, default=float("inf"))
