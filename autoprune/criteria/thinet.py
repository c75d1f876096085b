"""Next-layer reconstruction, chosen greedily. Luo et al., "ThiNet", ICCV 2017, arXiv 1707.06342, equations 4 to 6.

Rows of X (R, C): what each unit adds to a sampled output of the next layer, whose sum over the units is y. Removing the
set T costs || sum_{c in T} x_c ||^2. With G = X^T X:

    variant remove (ICCV)   repeat: T <- T + argmin_j  cost(T) + 2 (G 1_T)_j + G_jj
                            score_C[j] = the largest cost until j was removed, over ||y||^2
    variant omp (journal)   repeat: S <- S + argmax_j (x_j^T q)^2 / G_jj,  q = y - X_S w  with w refitted to all of S
                            score_C[j] = ||q||^2 over ||y||^2 before j was chosen; units never chosen score 0

Unit: a share of the next layer's output, between layers comparable. Scores follow the greedy order strictly (1e-9 of
the order is added), so keeping the highest k keeps exactly what the paper keeps.

Extends the paper: rows of all readers are stacked, each reader's scaled to unit mean square of y; a layer that also
reads other groups counts with this group's part. A depthwise reader is passed through to the next pointwise one.
Departs from it: all groups are scored on the model before the cut; an iterative schedule scores anew between its steps,
where the paper goes layer by layer. The least-squares rescaling is the recovery `thinet_rescale`.
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
from autoprune.graph import Group

_TIE = 1e-9
_LEAST = 1e-10


@dataclass(frozen=True, kw_only=True)
class Thinet(Criterion):
    """Remove the set of units without which the next layer's outputs change least."""

    needs: ClassVar[frozenset[str]] = frozenset({Evidence.NEXT_LAYER})

    variant: str = choice(
        "remove", options=("remove", "omp"), help="remove greedily, or choose greedily and refit what was chosen"
    )

    def score(self, group: Group, evidence: ModelEvidence) -> Tensor:
        return evidence.remember(f"thinet/{self.variant}/{group.name}", lambda: self._score(group, evidence))

    def _score(self, group: Group, evidence: ModelEvidence) -> Tensor:
        grams = evidence.next_layer(group)
        if not grams:
            raise NotApplicable(
                f"thinet reconstructs the next layer; group {group.name!r} is read by no linear layer or one- or "
                "two-dimensional convolution"
            )
        gram_CC = torch.stack([_unit_output(g.cpu()) for g in grams.values()]).mean(dim=0)
        order, costs = greedy_removal(gram_CC) if self.variant == "remove" else _least_useful_first(gram_CC)
        return _in_order(order, costs)


def greedy_removal(gram_CC: Tensor) -> tuple[Tensor, Tensor]:
    """Return the order (C,) in which units go, and the cost (C,) after each of them. Ties: the lowest index."""
    diagonal_C, crossed_C = gram_CC.diagonal(), torch.zeros_like(gram_CC.diagonal())
    gone_C = torch.zeros(len(gram_CC), dtype=torch.bool)
    order, costs, cost = [], [], 0.0
    for _ in range(len(gram_CC)):
        after_C = cost + 2 * crossed_C + diagonal_C
        removed = int(torch.where(gone_C, torch.inf, after_C).argmin())
        cost = float(after_C[removed])
        crossed_C = crossed_C + gram_CC[removed]
        gone_C[removed] = True
        order.append(removed)
        costs.append(cost)
    return torch.tensor(order), torch.tensor(costs, dtype=torch.float64)


def greedy_choice(gram_CC: Tensor) -> tuple[Tensor, Tensor]:
    """Return the order in which units are chosen, and ||q||^2 before each choice.

    Units that the chosen ones already express, and dead ones, are never chosen and are left out. The refit is a
    Gram-Schmidt step: rows v = X^T u of the orthonormal directions u that the chosen units span.
    """
    norm_C, left_C = gram_CC.diagonal(), gram_CC.diagonal().clone()
    matching_C, residual = gram_CC.sum(dim=1), float(gram_CC.sum())
    rows_NC = torch.zeros_like(gram_CC)
    chosen_C = torch.zeros(len(gram_CC), dtype=torch.bool)
    order: list[int] = []
    residuals: list[float] = []
    while True:
        usable_C = (left_C > _LEAST * norm_C.max()) & ~chosen_C
        if not bool(usable_C.any()):
            return torch.tensor(order, dtype=torch.int64), torch.tensor(residuals, dtype=torch.float64)
        gain_C = torch.where(usable_C, matching_C.square() / norm_C.clamp_min(1e-300), -1.0)
        chosen = int(gain_C.argmax())
        rows_KC = rows_NC[: len(order)]
        row_C = (gram_CC[chosen] - rows_KC[:, chosen] @ rows_KC) / left_C[chosen].sqrt()
        rows_NC[len(order)] = row_C
        chosen_C[chosen] = True
        order.append(chosen)
        residuals.append(max(residual, 0.0))
        along = matching_C[chosen] / left_C[chosen].sqrt()
        residual -= float(along.square())
        matching_C = matching_C - row_C * along
        left_C = left_C - row_C.square()


def _least_useful_first(gram_CC: Tensor) -> tuple[Tensor, Tensor]:
    chosen, residuals = greedy_choice(gram_CC)
    never = sorted(set(range(len(gram_CC))) - set(chosen.tolist()))
    order = torch.cat([torch.tensor(never, dtype=torch.int64), chosen.flip(0)])
    return order, torch.cat([residuals.new_zeros(len(never)), residuals.flip(0)])


def _unit_output(gram_CC: Tensor) -> Tensor:
    square = gram_CC.sum()
    return gram_CC / square if float(square) > 0 else gram_CC


def _in_order(order: Tensor, costs: Tensor) -> Tensor:
    """Scores (C,) that rise strictly along the order and never fall below the largest cost so far."""
    score_C = torch.empty_like(costs)
    steps = torch.arange(len(order), dtype=torch.float64) / len(order)
    score_C[order] = costs.clamp_min(0).cummax(dim=0).values + _TIE * steps
    return score_C
