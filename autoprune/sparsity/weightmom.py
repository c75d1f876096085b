"""Momentum-based gradual pruning. Johnson, Tang and Samudrala, "WeightMom", 2022, arXiv 2208.05970.

    v <- beta * v + (1 - beta) * |w|  after every step,    score_w = v / (1 - beta ** steps)

Over `epochs` of training there are `events`, evenly spaced from `begin` to `end` of them; after event e of n

    S_e = sparsity * (1 - (1 - e / n) ** 3)

of all weights are masked for good. Of the K that go at an event a layer loses

    (1 - gamma) * K * alive_l / alive + gamma * (how many of the K smallest scores of the network it holds)

rounded by largest remainders, its smallest scores (ties: smaller |w|, then lower index). Every layer keeps at least
`min_keep` of its weights; what it cannot lose is taken from the others. Unit of scores: that of the weight.

Only the paper's abstract was available: gradual pruning, a score from the weights' momentum over previous iterations,
and a layer importance from relative sparsity come first-hand; formulas and defaults are our reading of it. The average
begins with this training, for a trained model too. With
beta = 0 and gamma = 1 this is gradual magnitude pruning (Zhu and Gupta, arXiv 1710.01878).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from autoprune import masks
from autoprune.fields import choice, integer, real
from autoprune.masks import Hold, Masks
from autoprune.sparsity._base import Sparsified, Sparsity, SparsityContext


@dataclass(frozen=True, kw_only=True)
class Weightmom(Sparsity):
    """Remove weights during training, those that have been small for long."""

    epochs: float = real(40.0, valid=(0.01, 10000.0), search=(1.0, 40.0), log=True, help="of training with removal")
    beta: float = real(0.99, valid=(0.0, 0.99999), search=(0.9, 0.9999), help="memory of the average")
    gamma: float = real(
        0.5, valid=(0.0, 1.0), search=(0.0, 1.0), help="0: the same share of every layer; 1: global ranking"
    )
    events: int = integer(20, valid=(1, 10000), search=(5, 100), log=True, help="times at which weights go")
    begin: float = real(0.1, valid=(0.0, 1.0), search=(0.0, 0.3), help="part of the epochs before the first event")
    end: float = real(0.6, valid=(0.0, 1.0), search=(0.4, 0.75), help="part of the epochs before the last event")
    min_keep: float = real(0.005, valid=(0.0, 1.0), search=(0.001, 0.05), log=True, help="least share of every layer")
    source: Literal["abs", "signed"] = choice(
        "abs", options=("abs", "signed"), help="what is averaged: |w|, or w, which penalises changes of sign"
    )

    def sparsify(self, model: nn.Module, context: SparsityContext) -> Sparsified:
        """Raises BadRecipe as the context's training does."""
        hook = _Momentum(masks.full(model), self)
        context.train(model, self.epochs, hook)
        wanted = masks.kept_of(masks.size(hook.masks), self.sparsity)
        left = masks.count(hook.masks) - wanted
        notes = (f"min_keep holds {left} weights above the sparsity asked for",) if left > 0 else ()
        return Sparsified(masks=hook.masks, notes=notes)

    def event_steps(self, steps: int) -> dict[int, int]:
        """Return event by number of steps done; where several fall on one step, the last of them."""
        span = max(1, self.events - 1)
        first = self.begin if self.events > 1 else self.end
        last = max(self.end, first)
        return {
            min(steps, max(1, round(steps * (first + (last - first) * (e - 1) / span)))): e
            for e in range(1, self.events + 1)
        }

    def share_after(self, event: int) -> float:
        """Return S_e."""
        return self.sparsity * (1 - (1 - event / self.events) ** 3)


class _Momentum(Hold):
    def __init__(self, masks: Masks, method: Weightmom) -> None:
        super().__init__(masks)
        self._method = method
        self._average: dict[str, Tensor] = {}
        self._events: dict[int, int] = {}

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        super().begin(model, optimizer, steps)
        self._average = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}
        self._events = self._method.event_steps(steps)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        super().after_step(step)
        beta, signed = self._method.beta, self._method.source == "signed"
        for name, weight in self.weights.items():
            self._average[name].mul_(beta).add_(weight if signed else weight.abs(), alpha=1 - beta)
        if step + 1 in self._events:
            self._remove(self._method.share_after(self._events[step + 1]), 1 - beta ** (step + 1))

    def _remove(self, share: float, correction: float) -> None:
        total, alive = masks.size(self.masks), masks.count(self.masks)
        going = alive - masks.kept_of(total, share)
        if going <= 0:
            return
        scores = {name: average.abs() / correction for name, average in self._average.items()}
        weights = {name: weight.detach() for name, weight in self.weights.items()}
        for name, mask in removed(
            scores, weights, self.masks, going, self._method.gamma, self._method.min_keep
        ).items():
            self.set_mask(name, mask)
            self._average[name].masked_fill_(~mask, 0.0)


def removed(
    scores: masks.Scores, weights: masks.Scores, before: Masks, going: int, gamma: float, min_keep: float
) -> Masks:
    """Return the masks after `going` more weights went."""
    names = list(scores)
    ranks = {n: _smallest_first(scores[n], weights[n], before[n]) for n in names}
    alive = [int(before[n].sum()) for n in names]
    layer = torch.cat([torch.full((len(ranks[n]),), i) for i, n in enumerate(names)])
    flat = [torch.cat([values[n].flatten()[ranks[n]].cpu() for n in names]) for values in (scores, weights)]
    order = _smallest_first(flat[0], flat[1], torch.ones_like(flat[0], dtype=torch.bool))
    together = torch.bincount(layer[order[:going]], minlength=len(names)).tolist()
    shares = [(1 - gamma) * going * a / sum(alive) + gamma * k for a, k in zip(alive, together, strict=True)]
    caps = [max(0, a - max(1, math.ceil(min_keep * before[n].numel()))) for a, n in zip(alive, names, strict=True)]
    found = {}
    for n, lost in zip(names, apportioned(shares, alive, caps, going), strict=True):
        mask = before[n].clone().flatten()
        mask[ranks[n][:lost]] = False
        found[n] = mask.view(before[n].shape)
    return found


def _smallest_first(score: Tensor, weight: Tensor, among: Tensor) -> Tensor:
    """Return the flat indices in `among` by rising score, then rising |w|, then rising index."""
    there = among.flatten().nonzero().flatten()
    there = there[torch.argsort(weight.flatten()[there].abs(), stable=True)]
    return there[torch.argsort(score.flatten()[there], stable=True)]


def apportioned(shares: Sequence[float], alive: Sequence[int], caps: Sequence[int], total: int) -> list[int]:
    """Return whole numbers in proportion to the shares, none above its cap, that add up to `total` where caps allow."""
    counts = [0] * len(shares)
    left = total
    while left > 0:
        free = [i for i in range(len(shares)) if counts[i] < caps[i]]
        if not free:
            break
        basis = shares if any(shares[i] > 0 for i in free) else alive
        whole = sum(basis[i] for i in free)
        exact = {i: left * basis[i] / whole for i in free}
        extra = {i: math.floor(value + 1e-9) for i, value in exact.items()}
        spare = left - sum(extra.values())
        for i in sorted(free, key=lambda i: (round(extra[i] - exact[i], 9), i))[:spare]:
            extra[i] += 1
        for i in free:
            taken = min(extra[i], caps[i] - counts[i])
            counts[i] += taken
            left -= taken
    return counts
