"""Channel independence. Sui et al., "CHIP", NeurIPS 2021, arXiv 2110.13981, equations 3 to 5.

    CI_C[c] = mean over samples n of  ||A_n||_* - ||A_n with row c zeroed||_*
    score_C[c] = mean over the places where the group is read of CI_C[c] / mean(CI_C)

A_n (C, M): the maps of a group's C units for one sample, flattened, behind the activation and, in a residual stream,
behind the addition; ||.||_* is the sum of the singular values. Unit: none, since it is relative to the group's mean
(CI grows with the size of the maps).

From eigenvalues of the smaller Gram matrix, in float64: of A A^T without row and column c, or of A^T A - a_c^T a_c.
Departs from the paper: one set of units for a whole residual stream, where the reference gives every block its own;
maps are read before pooling; `images` training samples without augmentation; where both C and M exceed 128 the maps are
averaged to at most 8 x 8. Features of linear layers count as maps of one value, tokens as a map's positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from autoprune.criteria._base import Criterion
from autoprune.evidence import Evidence, ModelEvidence
from autoprune.fields import integer
from autoprune.graph import Group

_LARGEST = 128
_POOLED = 8
_MOST_AT_ONCE = 2**22


@dataclass(frozen=True, kw_only=True)
class Chip(Criterion):
    """Remove units whose maps the other units of the group can express."""

    needs: ClassVar[frozenset[str]] = frozenset({Evidence.ACTIVATIONS})

    images: int = integer(64, valid=(1, 128), search=(16, 128), log=True, help="training samples that are looked at")

    def score(self, group: Group, evidence: ModelEvidence) -> Tensor:
        return evidence.remember(f"chip/{self.images}/{group.name}", lambda: self._score(group, evidence))

    def _score(self, group: Group, evidence: ModelEvidence) -> Tensor:
        found = []
        for maps in evidence.activations(group, "read"):
            rows_NCM = _bounded(maps[: self.images]).flatten(2).double()
            mean_C = torch.stack([independence(rows_CM) for rows_CM in rows_NCM]).mean(dim=0)
            level = mean_C.mean()
            found.append(mean_C / level if float(level) > 0 else mean_C)
        return torch.stack(found).mean(dim=0)


def independence(rows_CM: Tensor) -> Tensor:
    """Return (C,) how much the nuclear norm of rows (C, M) falls when one row is zeroed; float64, never negative."""
    rows_CM = rows_CM.double()
    scale = rows_CM.abs().max()
    if not float(scale) > 0:
        return rows_CM.new_zeros(len(rows_CM))
    rows_CM = rows_CM / scale
    few_rows = rows_CM.shape[0] <= rows_CM.shape[1]
    gram = rows_CM @ rows_CM.T if few_rows else rows_CM.T @ rows_CM
    width = max(1, _MOST_AT_ONCE // gram.numel())
    without = [
        _nuclear(_without_row(gram, part) if few_rows else gram - rows_CM[part, :, None] * rows_CM[part, None, :])
        for part in torch.split(torch.arange(len(rows_CM), device=rows_CM.device), width)
    ]
    return (_nuclear(gram) - torch.cat(without)).clamp_min(0) * scale


def _without_row(gram_CC: Tensor, removed_B: Tensor) -> Tensor:
    """(B, C, C): the Gram matrix with one row and column zeroed."""
    stays_BC = torch.ones(len(removed_B), len(gram_CC), dtype=gram_CC.dtype, device=gram_CC.device)
    stays_BC[torch.arange(len(removed_B)), removed_B] = 0
    return gram_CC * stays_BC[:, :, None] * stays_BC[:, None, :]


def _nuclear(gram: Tensor) -> Tensor:
    eigenvalues: Tensor = torch.linalg.eigvalsh(gram)
    return eigenvalues.clamp_min(0).sqrt().sum(dim=-1)


def _bounded(maps_NCPQ: Tensor) -> Tensor:
    _, units, height, width = maps_NCPQ.shape
    if min(units, height * width) <= _LARGEST:
        return maps_NCPQ
    return F.adaptive_avg_pool2d(maps_NCPQ, (min(height, _POOLED), min(width, _POOLED)))
