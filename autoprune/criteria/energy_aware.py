"""Nuclear norm of feature maps. Yeom et al., "Energy-Aware Pruning", 2021, arXiv 2103.10858.

    e_C[c] = mean over samples n of ||F_PQ[n, c]||_*                matrix = per_image
    e_C[c] = ||F_NM[c]||_*, one row of M = P * Q for each sample    matrix = batch
    score_C[c] = mean (policy average, backward) or sum (policy sum) over places of e_C[c] / mean(e_C)

F_PQ (P, Q): a unit's map for one sample, behind the activation; ||.||_* is the sum of the singular values, the paper's
energy. Unit: none under `layer_norm` other than none; tss divides by the sum instead of the mean, standard is the
z-score, linear runs from 0 to 1. Energy grows with the size of the maps, so with none groups are not comparable.

A residual stream is written at several places: average and sum score each producer's own map, before the addition;
backward scores the maps behind the additions. A depthwise convolution's output stands for that of its producer. A
feature of a linear layer is a map of one value, its energy the absolute value; of tokens, the Euclidean norm over them.
Not stated by what could be read of the paper, and so our choice: the map behind the activation as the matrix, the mean
as default normalisation (the plain sum makes wide layers cheap), average as default policy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from autoprune.criteria._base import Criterion
from autoprune.evidence import Evidence, ModelEvidence
from autoprune.fields import choice, integer
from autoprune.graph import Group

_MOST_AT_ONCE = 2**22


@dataclass(frozen=True, kw_only=True)
class EnergyAware(Criterion):
    """Remove units whose maps have small singular values."""

    needs: ClassVar[frozenset[str]] = frozenset({Evidence.ACTIVATIONS})

    images: int = integer(64, valid=(1, 128), search=(16, 128), log=True, help="training samples that are looked at")
    matrix: str = choice(
        "per_image", options=("per_image", "batch"), help="one matrix for each sample, or one over all of them"
    )
    layer_norm: str = choice(
        "mean",
        options=("mean", "tss", "standard", "linear", "none"),
        search=("mean", "standard"),
        help="how the energies of one place are made comparable with those of others",
    )
    policy: str = choice(
        "average",
        options=("average", "sum", "backward"),
        search=("average", "backward"),
        help="producers of one stream: averaged, summed, or scored behind their addition",
    )

    def score(self, group: Group, evidence: ModelEvidence) -> Tensor:
        label = "/".join(map(str, self.config().values()))
        return evidence.remember(f"{label}/{group.name}", lambda: self._score(group, evidence))

    def _score(self, group: Group, evidence: ModelEvidence) -> Tensor:
        places = evidence.activations(group, "read" if self.policy == "backward" else "written")
        energy = per_image if self.matrix == "per_image" else over_batch
        scores_LC = torch.stack([_NORMS[self.layer_norm](energy(maps[: self.images])) for maps in places])
        return scores_LC.sum(dim=0) if self.policy == "sum" else scores_LC.mean(dim=0)


def per_image(maps_NCPQ: Tensor) -> Tensor:
    """Return (C,): the mean over samples of each map's nuclear norm, float64."""
    total_C = maps_NCPQ.new_zeros(maps_NCPQ.shape[1], dtype=torch.float64)
    for part in maps_NCPQ.split(max(1, _MOST_AT_ONCE // max(1, maps_NCPQ[0].numel()))):  # type: ignore[no-untyped-call]
        total_C += _nuclear(part).sum(dim=0)
    return total_C / len(maps_NCPQ)


def over_batch(maps_NCPQ: Tensor) -> Tensor:
    """Return (C,): the nuclear norm of each unit's samples as the rows of one matrix, float64."""
    return _nuclear(maps_NCPQ.transpose(0, 1).flatten(2))


def _nuclear(matrices: Tensor) -> Tensor:
    values: Tensor = torch.linalg.svdvals(matrices.double())
    return values.sum(dim=-1)


def _over(energy_C: Tensor, scale: Tensor) -> Tensor:
    return energy_C / scale if float(scale) > 0 else torch.zeros_like(energy_C)


_NORMS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda e: _over(e, e.mean()),
    "tss": lambda e: _over(e, e.sum()),
    "standard": lambda e: _over(e - e.mean(), e.std(correction=0)),
    "linear": lambda e: _over(e - e.min(), e.max() - e.min()),
    "none": lambda e: e,
}
