"""Scheduled grow-and-prune. Ma et al., "GaP", ICLR 2022, arXiv 2106.09857.

Layers are split into `partitions` contiguous parts of about equal size. One part at a time is dense while the others
hold their masks; after `epochs` of training it is pruned back by magnitude, exactly, and the next part grows:

    prune   of every layer the largest |w| stay, n - floor(s * n) of its n weights, s by `distribution`
    grow    the part's masks are dropped; what comes back starts at zero, so that the function does not change

cyclic: step k trains part k mod partitions, rounds * partitions steps in a row on one model; weights and statistics of
norms carry over, every step has a fresh optimiser and a whole learning-rate cycle, and after the last step's pruning
all layers are sparse. parallel: in a round one copy per part is trained with that part dense; each part's layers, with
their biases and the norms registered after them, come from its copy, all else from the first, then everything is
pruned. Re-estimate statistics of batch norms afterwards (recovery `bn_reestimation`). At the start the first part is
dense (cyclic), the others have random masks.

`ends: dense` leaves the first and the last layer out of all this, and out of `sparsity`: the authors' code leaves them
optional. With a pattern every layer is pruned to it, whatever `distribution` says. The paper trains random weights
(recipe key `start`). Their step takes 10 epochs for translation.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from autoprune import masks
from autoprune.fields import choice, integer, real
from autoprune.masks import Hold, Masks
from autoprune.seeds import derive_seed
from autoprune.sparsity._base import Sparsified, SparsityContext
from autoprune.sparsity._densities import removed_fractions, zeros
from autoprune.sparsity._patterns import ANYWHERE, PatternedSparsity

Parts = Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class GrowAndPrune(PatternedSparsity):
    """Let one part of the network be dense at a time, and prune it back before the next."""

    mode: Literal["cyclic", "parallel"] = choice(
        "cyclic", options=("cyclic", "parallel"), help="parts one after the other, or in copies that are merged"
    )
    partitions: int = integer(4, valid=(1, 1000), search=(2, 8), help="parts of the network")
    rounds: int = integer(2, valid=(1, 1000), search=(1, 10), log=True, help="times that every part grows")
    epochs: float = real(
        10.0, valid=(0.01, 10000.0), search=(0.5, 10.0), log=True, help="of training with one part dense"
    )
    distribution: Literal["uniform", "erk", "er"] = choice(
        "uniform", options=("uniform", "erk", "er"), search=("uniform", "erk"), help="how sparse each layer is"
    )
    ends: Literal["dense", "sparse"] = choice(
        "dense", options=("dense", "sparse"), help="the first and the last layer of the network"
    )

    def sparsify(self, model: nn.Module, context: SparsityContext) -> Sparsified:
        model.to(context.device).eval()
        names = list(masks.prunable(model))
        outside = (names[0], names[-1]) if self.ends == "dense" and len(names) > 2 else ()
        weights = {name: w for name, w in masks.prunable(model).items() if name not in outside}
        parts = partitioned({name: w.numel() for name, w in weights.items()}, self.partitions)
        removed = removed_fractions({n: w.shape for n, w in weights.items()}, self.sparsity, self.distribution)
        kept = {n: max(1, w.numel() - zeros(w.numel(), removed[n])) for n, w in weights.items()}
        found = {n: self._pruned(_random(w, derive_seed(context.seed, "mask", n)), kept[n]) for n, w in weights.items()}
        run = self._cyclic if self.mode == "cyclic" else self._parallel
        run(model, context, parts, kept, found)
        notes = (f"not masked and not counted in the sparsity: {', '.join(outside)}",) if outside else ()
        return Sparsified(masks=found, notes=(*notes, *self.dense_layers(found)))

    def _cyclic(
        self, model: nn.Module, context: SparsityContext, parts: Parts, kept: Mapping[str, int], found: Masks
    ) -> None:
        steps = self.rounds * len(parts)
        for step in range(steps):
            part = parts[step % len(parts)]
            found |= _grown(found, part)
            masks.zero(model, found)
            context.train(model, self.epochs, Hold(found), "step", step)
            self._prune(model, part, kept, found)

    def _parallel(
        self, model: nn.Module, context: SparsityContext, parts: Parts, kept: Mapping[str, int], found: Masks
    ) -> None:
        masks.zero(model, found)
        for round_ in range(self.rounds):
            copies = [copy.deepcopy(model) for _ in parts]
            for i, (worker, part) in enumerate(zip(copies, parts, strict=True)):
                context.train(worker, self.epochs, Hold(found | _grown(found, part)), "round", round_, i)
            merge(model, copies, parts)
            for part in parts:
                self._prune(model, part, kept, found)

    def _prune(self, model: nn.Module, part: Sequence[str], kept: Mapping[str, int], found: Masks) -> None:
        for name in part:
            found[name] = self._pruned(model.get_parameter(name).detach().abs(), kept[name])
        masks.zero(model, {name: found[name] for name in part})

    def _pruned(self, score: Tensor, kept: int) -> Tensor:
        if self.pattern == ANYWHERE:
            return masks.keep_largest_in(score, kept)
        return self.select({"layer": score}, 1 - self.sparsity)["layer"]


def partitioned(sizes: Mapping[str, int], parts: int) -> list[list[str]]:
    """Return names in contiguous parts that end nearest to equal shares of the weights; none is empty."""
    names, total = list(sizes), sum(sizes.values())
    parts = min(parts, len(names))
    sums = [sum(list(sizes.values())[: i + 1]) for i in range(len(names))]
    found, begin = [], 0
    for i in range(parts):
        candidates = range(begin + 1, len(names) - (parts - i - 1) + 1)
        end = min(candidates, key=lambda e: abs(sums[e - 1] - (i + 1) / parts * total))
        end = len(names) if i + 1 == parts else end
        found.append(names[begin:end])
        begin = end
    return found


@torch.no_grad()
def merge(model: nn.Module, copies: Sequence[nn.Module], parts: Parts) -> None:
    """Take every part's layers, biases and norms after them from its copy, in place; the rest from the first."""
    states = [worker.state_dict() for worker in copies]
    for name, value in _owned(model, parts).items():
        model.state_dict()[name].copy_(states[value][name])


def _owned(model: nn.Module, parts: Parts) -> dict[str, int]:
    """Return by name in the state the copy that it comes from."""
    part_of = {name: i for i, part in enumerate(parts) for name in part}
    layers = masks.prunable(model)
    owned: dict[str, int] = {}
    current = 0
    for module_name, module in model.named_modules():
        prefix = f"{module_name}." if module_name else ""
        if f"{prefix}weight" in layers:
            current = part_of.get(f"{prefix}weight", 0)
        own = [*module._parameters, *module._buffers]
        owned |= dict.fromkeys((f"{prefix}{name}" for name in own), current)
    return {name: owned[name] for name in model.state_dict() if name in owned}


def _random(weight: Tensor, seed: int) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.rand(weight.shape, generator=draws, dtype=torch.float64).to(weight.device)


def _grown(found: Masks, part: Sequence[str]) -> Masks:
    return {name: torch.ones_like(found[name]) for name in part}
