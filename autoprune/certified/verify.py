"""Certified accuracy: the share of samples whose class is proven to stay, over all inputs near them.

A sample counts when it is classified correctly and the lower bound of every margin to another class is above 0
(interval bounds, with the margin taken inside the last layer). An attack by projected gradients (Madry et al., ICLR
2018, arXiv 1706.06083) gives an upper bound: certified <= attacked <= clean, or something is wrong.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from autoprune.certified.bounds import Bounded
from autoprune.certified.box import Interval, box_around, only_tensor
from autoprune.data.images import Pixels
from autoprune.data.split import Split
from autoprune.errors import BadData, CheckFailed
from autoprune.seeds import derive_seed
from autoprune.tasks import forward, logits_of

_BATCH = 64
_ATTACK_STEPS, _ATTACK_STEP = 10, 0.25
"""Steps of the attack, and the length of each in half-widths of the box."""


@dataclass(frozen=True, kw_only=True)
class Certification:
    """Shares of the same `count` samples, 0 to 1. epsilon: in pixel values of 0 to 1, where the data is images.

    clean: right as they are. attacked: still right under the attack. certified: proven to be right in the whole box.
    """

    epsilon: float
    count: int
    clean: float
    attacked: float
    certified: float


def certify(
    model: nn.Module, split: Split, pixels: Pixels | None, epsilon: float, *, samples: int = 200, seed: int = 0
) -> Certification:
    """Certify a classifier on the same `samples` samples of a split every time, where the model is.

    A copy in eval mode and double precision is bounded, so that rounding does not decide; the model is not changed.
    seed: of the points at which the attack begins. Raises NotApplicable for a network that the rules do not cover,
    BadData for an empty split, and CheckFailed should the attack break what was proven.
    """
    own = copy.deepcopy(model).double().eval().requires_grad_(False)
    device = next(own.parameters()).device
    bounded: Bounded | None = None
    clean, attacked, certified, count = 0, 0, 0, 0
    draws = torch.Generator().manual_seed(derive_seed(seed, "attack"))
    for inputs, labels_N in split.batches(_BATCH, limit=samples, device=device):
        given = only_tensor(inputs).double()
        bounded = bounded or Bounded(own, given[torch.arange(2) % len(given)])
        box = box_around(given, epsilon, pixels)
        with torch.no_grad():
            right_N = logits_of(forward(own, given)).argmax(1) == labels_N
            proven_N = right_N & is_proven(bounded.on(box).margins(labels_N), labels_N)
        holds_N = right_N & withstands(own, box, labels_N, draws)
        if bool((proven_N & ~holds_N).any()):
            raise CheckFailed("an attack broke a sample that the interval bounds had proven; the bounds are wrong")
        clean, attacked, certified = (
            total + int(found.sum()) for total, found in ((clean, right_N), (attacked, holds_N), (certified, proven_N))
        )
        count += len(labels_N)
    if count == 0:
        raise BadData("there is nothing to certify: the split is empty")
    return Certification(
        epsilon=epsilon, count=count, clean=clean / count, attacked=attacked / count, certified=certified / count
    )


def is_proven(margins_NK: Tensor, labels_N: Tensor) -> Tensor:
    """Return, (N,), whether every lower bound of a margin to another class is above 0."""
    others_NK = ~torch.nn.functional.one_hot(labels_N, margins_NK.shape[1]).bool()
    return ((margins_NK > 0) | ~others_NK).all(1)


def withstands(model: nn.Module, box: Interval, labels_N: Tensor, draws: torch.Generator) -> Tensor:
    """Return, (N,), whether the class stays at every step of an attack inside the box."""
    share = torch.rand(box.low.shape, generator=draws, dtype=box.low.dtype).to(box.low.device)
    now = box.low + share * (box.high - box.low)
    holds_N = torch.ones_like(labels_N, dtype=torch.bool)
    for _ in range(_ATTACK_STEPS):
        now = now.detach().requires_grad_(True)
        with torch.enable_grad():
            logits_NK = logits_of(forward(model, now))
            (slope,) = torch.autograd.grad(cross_entropy(logits_NK, labels_N), now)
        holds_N &= logits_NK.argmax(1) == labels_N
        now = (now + _ATTACK_STEP * box.radius * slope.sign()).detach().clamp(box.low, box.high)
    with torch.no_grad():
        return holds_N & (logits_of(forward(model, now)).argmax(1) == labels_N)
