"""Sparse connectivity learning. Tang et al., IEEE TNNLS 34(10), 2023, arXiv 2201.05020.

    w = theta * M,   M = 1 where m > 0,   objective: task loss + price * number of ones in all M
    dL/dtheta = dL/dw * M,   dL/dm = dL/dw * theta        (the step's gradient is taken for 1, also where M = 0)
    m <- clip(m - mask_lr * (dL/dm * sqrt(n) / |dL/dm| + price), -clip, clip)

m has the shape of the weight and begins at `initial`; |dL/dm| is the norm over the n entries of one output channel, so
that their root mean square becomes 1. m, mask_lr and price have no unit: with dL/dm = 0 a weight goes after
initial / (mask_lr * price) steps, and one that is missed comes back with the value theta that it left with. theta is
trained by the recipe's optimiser where M = 1 and keeps its value, without momentum, elsewhere. A layer whose M would be
empty keeps the weight with the largest m.

Masks move during `epochs` of training until as many weights are left as `sparsity` asks for; the step that would go
below takes the smallest m only. From then on, and at the latest after the last step, masks are fixed. If the price was
too low to get there, the weights of smallest m go in the end, which a note says.

The paper's text was not available: the reparameterisation, the identity as gradient of the step, normalisation by
feature and the count as regulariser are its abstract; the norm, the constants and the end are our reading. The paper
sets no sparsity: it comes from the price.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from autoprune import masks
from autoprune.fields import choice, real
from autoprune.masks import Hold, Masks
from autoprune.sparsity._base import Sparsified, Sparsity, SparsityContext

_TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class Scl(Sparsity):
    """Learn which weights are there by gradients, against a price on each."""

    epochs: float = real(70.0, valid=(0.01, 10000.0), search=(1.0, 70.0), log=True, help="of training with live masks")
    price: float = real(
        0.2, valid=(0.0, 100.0), search=(1e-3, 1.0), log=True, help="of one weight, per normalised gradient"
    )
    mask_lr: float = real(0.01, valid=(1e-6, 10.0), search=(1e-3, 1.0), log=True, help="learning rate of m")
    initial: float = real(0.5, valid=(1e-3, 1.0), search=(0.05, 1.0), log=True, help="m at the start")
    clip: float = real(
        1.0, valid=(1e-3, 1000.0), search=(0.5, 2.0), help="bound on |m|, so that no return takes for ever"
    )
    norm: Literal["rms", "l2", "none"] = choice(
        "rms", options=("rms", "l2", "none"), search=("rms",), help="how gradients of m are scaled by output channel"
    )

    def sparsify(self, model: nn.Module, context: SparsityContext) -> Sparsified:
        hook = _Learning(masks.full(model), self)
        context.train(model, self.epochs, hook)
        if not hook.forced:
            return Sparsified(masks=hook.masks)
        note = f"scl: the price removed too little; {hook.forced} weights of smallest m were taken at the end"
        return Sparsified(masks=hook.masks, notes=(note,))


class _Learning(Hold):
    def __init__(self, masks: Masks, method: Scl) -> None:
        super().__init__(masks)
        self._method = method
        self._values: dict[str, Tensor] = {}
        self._m: dict[str, Tensor] = {}
        self._wanted = self._steps = 0
        self._frozen = False
        self.forced = 0

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        super().begin(model, optimizer, steps)
        self._values = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self._m = {name: torch.full_like(value, self._method.initial) for name, value in self._values.items()}
        self._wanted, self._steps = masks.kept_of(masks.size(self._m), self._method.sparsity), steps

    @torch.no_grad()
    def before_step(self, step: int) -> bool:
        """Move m by the dense gradients, before they are masked for theta."""
        if not self._frozen:
            for name, weight in self.weights.items():
                if weight.grad is not None:
                    gradient = normalised(weight.grad * self._values[name], self._method.norm)
                    self._m[name].sub_(gradient + self._method.price, alpha=self._method.mask_lr)
                    self._m[name].clamp_(-self._method.clip, self._method.clip)
        return super().before_step(step)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Take over the trained values where M was 1, then let M follow m."""
        super().after_step(step)
        if self._frozen:
            return
        for name, weight in self.weights.items():
            self._values[name] = torch.where(self.masks[name], weight, self._values[name])
        found = alive(self._m)
        if masks.count(found) <= self._wanted:
            found, self._frozen = masks.keep_largest(self._m, self._wanted), True
        elif step + 1 == self._steps:
            self.forced = masks.count(found) - self._wanted
            found, self._frozen = masks.keep_largest(self._m, self._wanted), True
        for name, mask in found.items():
            self.set_mask(name, mask)
            self.weights[name].copy_(self._values[name] * mask)


def normalised(gradient: Tensor, norm: str) -> Tensor:
    """Return the gradient of m (O, ...) scaled by output channel; one that is zero stays zero."""
    if norm == "none":
        return gradient
    rows = gradient.flatten(1)
    length = rows.shape[1] ** 0.5 if norm == "rms" else 1.0
    norm_O1 = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    scaled: Tensor = rows * length / (norm_O1 + _TINY)
    return scaled.view_as(gradient)


def alive(m: masks.Scores) -> Masks:
    """Return M: where m is above zero, and in an empty layer the largest m, of equal ones the first."""
    return {name: v > 0 if bool((v > 0).any()) else masks.keep_largest_in(v, 1) for name, v in m.items()}
