"""Rigged lottery: a fixed number of weights that move. Evci et al., "RigL", ICML 2020, arXiv 1911.11134.

Masks begin at random with the density that `distribution` gives each layer, and each layer keeps its count for good.
Every `interval` steps an update takes the place of the optimiser's step, until `end` of the training has passed:

    k = floor(f(t) * n),   f(t) = alpha / 2 * (1 + cos(pi * t / t_end))
    drop    the k kept weights of smallest |w|
    grow    of all that are then masked, those just dropped included, the k of largest |dL/dw|

n is how many weights of the layer stay, t counts steps of this training. dL/dw is the dense gradient of the batch.
What grows starts at zero without momentum; a weight dropped and grown at once keeps both. Ties: the lower index stays.

The share of zeros is over the layers that are masked: depthwise convolutions stay dense, and with `uniform` so does the
first layer, as in the authors' code. The paper trains random weights (recipe key `start`); training in several rungs
runs the cosine of f anew in each, as it does that of the learning rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from autoprune import masks
from autoprune.fields import choice, integer, real
from autoprune.masks import Hold, Masks
from autoprune.seeds import derive_seed
from autoprune.sparsity._base import Sparsified, Sparsity, SparsityContext
from autoprune.sparsity._densities import removed_fractions, zeros


@dataclass(frozen=True, kw_only=True)
class Rigl(Sparsity):
    """Drop small weights and grow those with large gradients, all through the training."""

    distribution: Literal["erk", "er", "uniform"] = choice(
        "erk", options=("erk", "er", "uniform"), search=("erk", "uniform"), help="how sparse each layer is"
    )
    power: float = real(1.0, valid=(0.0, 1.0), search=(0.0, 1.0), help="of the proportions of er and erk")
    interval: int = integer(100, valid=(1, 100000), search=(10, 1000), log=True, help="steps between updates")
    alpha: float = real(
        0.3, valid=(0.0, 1.0), search=(0.05, 0.5), help="share of kept weights that the first updates move"
    )
    end: float = real(0.75, valid=(0.0, 1.0), search=(0.5, 0.95), help="part of the training with updates")

    def sparsify(self, model: nn.Module, context: SparsityContext) -> Sparsified:
        model.to(context.device).eval()
        weights = maskable(model, skip_first=self.distribution == "uniform")
        removed = removed_fractions(
            {name: w.shape for name, w in weights.items()}, self.sparsity, self.distribution, self.power
        )
        found: Masks = {}
        for name, weight in weights.items():
            draws = torch.Generator().manual_seed(derive_seed(context.seed, "mask", name))
            kept = max(1, weight.numel() - zeros(weight.numel(), removed[name]))
            found[name] = masks.keep_random(weight.shape, kept, draws).to(context.device)
        masks.zero(model, found)
        dense = [name for name in masks.prunable(model) if name not in found]
        notes = (f"not masked and not counted in the sparsity: {', '.join(dense)}",) if dense else ()
        return Sparsified(masks=found, notes=notes)

    def hold(self, masks: Masks, seed: int) -> Hold:
        return _Rigging(masks, self)


def maskable(model: nn.Module, *, skip_first: bool) -> dict[str, nn.Parameter]:
    """Return the weights that have a mask: no depthwise convolution, and not the first layer where it stays dense."""
    found = {}
    for name, weight in list(masks.prunable(model).items())[int(skip_first) :]:
        groups = getattr(model.get_submodule(name.rpartition(".")[0]), "groups", 1)
        if groups == 1 or weight.shape[1] > 1:
            found[name] = weight
    return found


class _Rigging(Hold):
    def __init__(self, masks: Masks, method: Rigl) -> None:
        super().__init__(masks)
        self._method = method
        self._last = 0.0

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        super().begin(model, optimizer, steps)
        self._last = self._method.end * steps

    def before_step(self, step: int) -> bool:
        if step == 0 or step % self._method.interval or step >= self._last:
            return super().before_step(step)
        share = moved_share(step, self._last, self._method.alpha)
        for name, weight in self.weights.items():
            if weight.grad is not None and not bool(self.masks[name].all()):
                self.set_mask(name, rigged(weight.detach(), self.masks[name], weight.grad, share))
        return True


def moved_share(step: int, last: float, alpha: float) -> float:
    """Return f(t): the share of kept weights that an update at this step moves."""
    return alpha / 2 * (1 + math.cos(math.pi * step / last))


def rigged(weight: Tensor, mask: Tensor, gradient: Tensor, share: float) -> Tensor:
    """Return the mask after dropping and growing this share of the kept weights; it keeps as many."""
    kept = int(mask.sum())
    moved = math.floor(share * kept + 1e-9)
    stays = masks.keep_largest_in(weight.abs(), kept - moved, mask)
    grows = masks.keep_largest_in(gradient.abs(), moved, ~stays)
    return stays | grows
