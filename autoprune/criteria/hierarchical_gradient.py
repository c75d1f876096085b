"""Gradient-matrix redundancy, layer by layer. Zhou et al., "Hierarchical Pruning", 2022, arXiv 2206.03596.

K (C, C): second moments over samples of the loss gradients by the C filters W_c (d weights each, bias included), with
eigenvalues lam. Overlapping, linearly dependent and dead filters make K singular: what it lacks in rank can go.

    redundancy  r = C - min{k : sum of the k largest lam >= (1 - eps) sum of all lam}, at most C - 1
    layer       price of the m cheapest dimensions: E = 1/2 ||W||^2 / (C d) * sum of the m smallest lam of what remains,
                over the MACs that m units save (layer_rule error_per_mac) or as it is (error)
    filter      q_c = 1/2 ||W_c||^2 / d / [(K + delta I)^-1]_cc,  delta = 1e-6 trace(K) / C: the smallest goes next, and
                the inverse is downdated, so that of two equal filters the second becomes dear

The paper chooses the layer first (chunks of `step` of it), then the filters in it, no layer beyond its redundancy. A
score is the price of the unit's chunk, never below those before it, so that `allocation: global` without normalisation
takes chunks in the order in which the paper's loop takes them. It lies in [0, 1) as price / (1 + price) within the
redundancy. Beyond it a score is 1 + the eps that would allow the unit: a target beyond what eps allows is met with the
smallest eps that does, instead of missed. A group's last unit scores 2. Unit: none; within a group strictly ordered.

The body of the paper could not be read: the formulas realise what its abstract states. MACs are those of the model as
it is scored, not of every intermediate one; an iterative schedule refreshes K between its cuts. Producers of a stream
add up their K; a group needs samples * d >= 4 C, or the lack of rank would be one of samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from autoprune.criteria._base import Criterion
from autoprune.errors import NotApplicable
from autoprune.evidence import Evidence, ModelEvidence
from autoprune.evidence.filter_gradients import needed_eps, redundancy, spectrum
from autoprune.fields import choice, real
from autoprune.graph import Group, Role

_DAMPING = 1e-6


@dataclass(frozen=True, kw_only=True)
class HierarchicalGradient(Criterion):
    """Remove units whose gradients the others of the layer explain, from the layer where that is cheapest."""

    needs: ClassVar[frozenset[str]] = frozenset({Evidence.FILTER_GRADIENTS})

    eps: float = real(0.01, valid=(0.0, 0.99), search=(1e-4, 0.2), log=True, help="gradient energy a layer may lose")
    step: float = real(0.05, valid=(1e-3, 1.0), search=(0.01, 0.2), log=True, help="share of a layer that goes at once")
    layer_rule: str = choice(
        "error_per_mac", options=("error_per_mac", "error"), help="what a layer is chosen by: error by cost, or error"
    )

    def score(self, group: Group, evidence: ModelEvidence) -> Tensor:
        label = "/".join(map(str, self.config().values()))
        return evidence.remember(f"{label}/{group.name}", lambda: self._score(group, evidence))

    def _score(self, group: Group, evidence: ModelEvidence) -> Tensor:
        gram_CC = evidence.filter_gradients(group).cpu()
        square_C, length = _filters(group, evidence)
        if evidence.samples * length < 4 * group.size:
            raise NotApplicable(
                f"hierarchical_gradient needs samples * weights per unit >= 4 * units; group {group.name!r} has "
                f"{evidence.samples} * {length} for {group.size} units: take more evidence_batches"
            )
        chunk = max(1, round(self.step * group.size))
        allowed = redundancy(spectrum(gram_CC), self.eps)
        macs = max(1.0, group.flops_per_unit / 2) if self.layer_rule == "error_per_mac" else 1.0
        order, prices = removal(gram_CC, square_C, length, chunk, allowed)
        price_C = np.maximum.accumulate(np.array(prices) / macs)
        found = np.concatenate([price_C / (1 + price_C), 1 + needed_eps(spectrum(gram_CC))[allowed:]])
        score_C = torch.zeros(group.size, dtype=torch.float64)
        score_C[torch.tensor(order)] = torch.from_numpy(_rising(found))
        return score_C


def removal(gram_CC: Tensor, square_C: Tensor, length: int, chunk: int, allowed: int) -> tuple[list[int], list[float]]:
    """Return all filters in the order in which they go, and for the first `allowed` the error E of their chunk.

    square_C: ||W_c||^2. The rest goes in chunks as well.
    """
    order: list[int] = []
    prices: list[float] = []
    while len(order) < len(gram_CC):
        gone = set(order)
        left = [c for c in range(len(gram_CC)) if c not in gone]
        budget = allowed - len(order) if len(order) < allowed else len(left)
        count = min(chunk, budget)
        within_CC = gram_CC[left][:, left]
        if len(order) < allowed:
            energy = float(square_C[left].sum()) / (len(left) * length)
            prices += [0.5 * energy * float(spectrum(within_CC)[len(left) - count :].sum())] * count
        order += [left[i] for i in cheapest(within_CC, square_C[left] / length, count)]
    return order, prices


def cheapest(gram_CC: Tensor, energy_C: Tensor, count: int) -> list[int]:
    """Return `count` filters one by one, each the one with the smallest q of those that remain. Ties: lowest index."""
    level = gram_CC.diagonal().mean()
    if not float(level) > 0:
        return list(range(count))
    inverse_CC = torch.linalg.inv(gram_CC + _DAMPING * level * torch.eye(len(gram_CC), dtype=gram_CC.dtype))
    downdates = Downdates(inverse_CC, count)
    gone: list[int] = []
    for _ in range(count):
        cost_C = 0.5 * energy_C / downdates.diagonal_C.clamp_min(1e-300)
        cost_C[gone] = torch.inf
        gone.append(int(cost_C.argmin()))
        downdates.remove(gone[-1])
    return gone


class Downdates:
    """The inverse of a matrix from which rows and columns are taken one by one; those stay behind as zeros.

    With r the row of what is removed, each step subtracts r r^T / r[removed]. Kept are the r / sqrt(r[removed]): a step
    asks for one row and the diagonal, not for all of the matrix.
    """

    def __init__(self, inverse_CC: Tensor, count: int) -> None:
        self._inverse_CC, self._steps = inverse_CC, 0
        self._taken_NC = inverse_CC.new_zeros(count, len(inverse_CC))
        self.diagonal_C = inverse_CC.diagonal().clone()

    def row(self, index: int) -> Tensor:
        """Return one row (C,) of the inverse as it is now."""
        taken_KC = self._taken_NC[: self._steps]
        return self._inverse_CC[index] - taken_KC[:, index] @ taken_KC

    def remove(self, index: int) -> None:
        """Take a row and its column out."""
        row_C = self.row(index)
        scaled_C = row_C / row_C[index].clamp_min(1e-300).sqrt()
        self._taken_NC[self._steps] = scaled_C
        self._steps += 1
        self.diagonal_C -= scaled_C.square()


def _filters(group: Group, evidence: ModelEvidence) -> tuple[Tensor, int]:
    """Return ||W_c||^2 (C,) and d over all producers, biases included."""
    producers = group.places_with(Role.OUTPUT, Role.DEPTHWISE)
    modules = {p.module for p in producers}
    biases = [p for p in group.places_with(Role.BIAS) if p.module in modules]
    rows = torch.cat([evidence.slices(p).cpu() for p in (*producers, *biases)], dim=1)
    return rows.square().sum(dim=1), rows.shape[1]


def _rising(values: np.ndarray) -> np.ndarray:
    """The values, each at least the next number above the one before it."""
    found = values.copy()
    for i in range(1, len(found)):
        found[i] = max(found[i], np.nextafter(found[i - 1], np.inf))
    return found
