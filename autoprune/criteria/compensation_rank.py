"""Ranking of units by what compensation can win back. Xie et al. 2021, "Pruning with Compensation", arXiv 2108.13728.

A layer with weight W (N, D) reads rows x (D) of covariance S; unit t owns the rows T, K are the rows of the units
chosen so far. What x[K] cannot express leaves S_K = S - S[:, K] S[K, K]^-1 S[K, :]. Greedily, the next unit is the one
with the largest gain, which is what the least error of compensation, trace(W S_K W^T), falls by:

    gain(t) = trace( R S_K[T, T]^-1 R^T ),    R = W S_K[:, T]

    score_C[t] = trace(W S_K W^T) / trace(W S W^T) just before t was chosen, summed over the readers before dividing

Unit: a share of the variance of what the readers put out, comparable between groups. Scores follow the greedy order
strictly. Never chosen, and so 0, are units without variance, and those that the chosen ones express already (a pivot
below 1e-9 of the largest variance): of these the last index goes first. Several readers' gains are added. The columns
of a reader that belong to other groups count as given, as they stay. Rows without variance, such as kernel taps that
only ever see padding, are left out of a unit. Belongs to the recovery `compensation`.
Departs from the paper: the search of amounts under a falling accuracy floor is left to the allocation, and so is that
units without variance always go; of several groups each is ranked as if the others stayed; readers too wide to hold S,
and grouped ones, are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from autoprune.criteria._base import Criterion
from autoprune.errors import NotApplicable
from autoprune.evidence import Evidence, ModelEvidence
from autoprune.graph import Group, Place

_LEAST_PIVOT = 1e-9
_NO_VARIANCE = 1e-12
_TIE = 1e-9


@dataclass(frozen=True, kw_only=True)
class CompensationRank(Criterion):
    """Remove units without which the next layers can be corrected best."""

    needs: ClassVar[frozenset[str]] = frozenset({Evidence.INPUT_MOMENTS})

    def score(self, group: Group, evidence: ModelEvidence) -> Tensor:
        return evidence.remember(f"compensation_rank/{group.name}", lambda: self._score(group, evidence))

    def _score(self, group: Group, evidence: ModelEvidence) -> Tensor:
        readers = [found for place in group.consumers if (found := _reader(place, evidence)) is not None]
        if not readers:
            raise NotApplicable(
                f"compensation_rank needs the statistics of a layer that reads the group; group {group.name!r} is read "
                "by none that has them (grouped, transposed, or too wide)"
            )
        order, errors = rank(readers)
        score_C = torch.zeros(group.size, dtype=torch.float64)
        whole = errors[0] if len(errors) and float(errors[0]) > 0 else torch.ones((), dtype=torch.float64)
        steps = torch.arange(len(order), 0, -1, dtype=torch.float64) / group.size
        score_C[order] = (errors / whole).clamp_min(0) + _TIE * (1 + steps)
        return score_C


class Reader:
    """One layer that reads the group: what the units chosen so far leave unexpressed."""

    def __init__(self, weight_ND: Tensor, covariance_DD: Tensor, rows_CB: Tensor) -> None:
        """rows_CB: the rows of each unit. Rows of no unit count as chosen."""
        self._weight_ND, self._rows_CB = weight_ND, rows_CB
        self._left_DD, self._mixed_ND = covariance_DD.clone(), weight_ND @ covariance_DD
        variance_D = covariance_DD.diagonal()
        self._largest = variance_D.max().clamp_min(0)
        live_CB = variance_D[rows_CB] > _NO_VARIANCE * self._largest
        self._live_C = live_CB.any(dim=1)
        # A one in the place of a variance that is zero keeps the row from the others and from the pivots.
        self._filled_CBB = torch.diag_embed(torch.where(live_CB, 0.0, self._largest).double())
        self._both_CBB = live_CB[:, :, None] & live_CB[:, None, :]
        others_D = torch.ones(len(covariance_DD), dtype=torch.bool)
        others_D[rows_CB.flatten()] = False
        if bool(others_D.any()):
            self._express(others_D.nonzero().flatten())

    def error(self) -> Tensor:
        """Return trace(W S_K W^T): what compensation by the chosen units cannot win back."""
        return (self._mixed_ND * self._weight_ND).sum()

    def gains(self) -> tuple[Tensor, Tensor]:
        """Return (C,) gains, and which units are usable (C,): neither without variance nor expressed already."""
        blocks_CBB = self._left_DD[self._rows_CB[:, :, None], self._rows_CB[:, None, :]]
        blocks_CBB = torch.where(self._both_CBB, blocks_CBB, self._filled_CBB)
        factor_CBB, info_C = torch.linalg.cholesky_ex(blocks_CBB)
        pivots_C = factor_CBB.diagonal(dim1=1, dim2=2).square().amin(dim=1)
        usable_C = self._live_C & (info_C == 0) & (pivots_C > _LEAST_PIVOT * self._largest)
        eye_BB = torch.eye(blocks_CBB.shape[1], dtype=blocks_CBB.dtype)
        factor_CBB = torch.where(usable_C[:, None, None], factor_CBB, eye_BB)
        solved_CBN = torch.linalg.solve_triangular(factor_CBB, self._mixed_ND.T[self._rows_CB], upper=False)
        return torch.where(usable_C, solved_CBN.square().sum(dim=(1, 2)), 0.0), usable_C

    def choose(self, unit: int) -> None:
        """Count a unit among the chosen ones."""
        self._express(self._rows_CB[unit])

    def _express(self, rows_B: Tensor) -> None:
        values_B, vectors_BB = torch.linalg.eigh(self._left_DD[rows_B][:, rows_B])
        inverse_B = torch.where(values_B > _NO_VARIANCE * self._largest, 1 / values_B, 0.0)
        root_BB = vectors_BB * inverse_B.sqrt()
        across_DB, along_NB = self._left_DD[:, rows_B] @ root_BB, self._mixed_ND[:, rows_B] @ root_BB
        self._left_DD -= across_DB @ across_DB.T
        self._mixed_ND = self._mixed_ND - along_NB @ across_DB.T


def rank(readers: list[Reader]) -> tuple[Tensor, Tensor]:
    """Return the units in the order of choice, most useful first, and the error before each choice.

    Units that no reader can use are left out. A unit is usable if one reader can use it.
    """
    order: list[int] = []
    errors: list[Tensor] = []
    while True:
        found = [reader.gains() for reader in readers]
        usable_C = torch.stack([usable for _, usable in found]).any(dim=0)
        usable_C[order] = False
        if not bool(usable_C.any()):
            break
        gain_C = torch.where(usable_C, torch.stack([gain for gain, _ in found]).sum(dim=0), -1.0)
        chosen = int(gain_C.argmax())
        errors.append(torch.stack([reader.error() for reader in readers]).sum())
        order.append(chosen)
        for reader in readers:
            reader.choose(chosen)
    return torch.tensor(order, dtype=torch.int64), torch.tensor(errors, dtype=torch.float64)


def _reader(place: Place, evidence: ModelEvidence) -> Reader | None:
    layer = place.tensor.rpartition(".")[0]
    moments = evidence.input_moments(layer)
    if moments is None or place.axis != 1:
        return None
    mean_D, second_DD = (m.cpu() for m in moments)
    weight = evidence.weight(place.tensor).double().cpu()
    weight_ND = weight.flatten(1)
    taps = weight_ND.shape[1] // weight.shape[1]
    channels_CM = torch.tensor(place.indices)
    rows_CB = (channels_CM[:, :, None] * taps + torch.arange(taps)).flatten(1)
    return Reader(weight_ND, second_DD - torch.outer(mean_D, mean_D), rows_CB)
