"""Layers whose cost depends on what they read: how to count it, and how to switch it off.

Their FLOPs are measured, per sample, over an evaluation, and stand beside dense FLOPs, never in their place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class Tally:
    """What a dynamic layer did on the samples seen: FLOPs by sample, the products' part of them, and dense FLOPs.

    share: mean over samples and places of the part of the input channels that was left.
    """

    flops: list[Tensor] = field(default_factory=list)
    products: list[Tensor] = field(default_factory=list)
    shares: list[Tensor] = field(default_factory=list)
    dense: int = 0

    def add(self, flops_N: Tensor, products_N: Tensor, shares_N: Tensor, dense: int) -> None:
        """Add one batch; dense: FLOPs of one sample in the plain layer."""
        self.flops.append(flops_N.double().cpu())
        self.products.append(products_N.double().cpu())
        self.shares.append(shares_N.double().cpu())
        self.dense = dense


class Dynamic(nn.Module):
    """A layer with a cheaper way in eval mode, whose cost depends on its input.

    enabled: whether eval mode takes that way; in training the layer is always the plain one. tally: where costs go.
    """

    enabled: bool
    tally: Tally | None


def dynamic_layers(model: nn.Module) -> dict[str, Dynamic]:
    """Return the model's dynamic layers by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Dynamic)}


@contextmanager
def as_dense(model: nn.Module) -> Iterator[None]:
    """Let all dynamic layers be plain ones for a while."""
    layers = list(dynamic_layers(model).values())
    before = [layer.enabled for layer in layers]
    try:
        for layer in layers:
            layer.enabled = False
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer.enabled = was


@contextmanager
def tallied(model: nn.Module) -> Iterator[dict[str, Tally]]:
    """Collect what the dynamic layers cost while the model is evaluated."""
    layers = dynamic_layers(model)
    found = {name: Tally() for name in layers}
    try:
        for name, layer in layers.items():
            layer.tally = found[name]
        yield found
    finally:
        for layer in layers.values():
            layer.tally = None


@dataclass(frozen=True, kw_only=True)
class DynamicCost:
    """FLOPs of one sample as measured: mean and standard deviation over samples, overhead included.

    products: the mean without overhead (centring, hashing, merging). share: mean part of the channels left.
    """

    mean: float
    spread: float
    products: float
    share: float

    @property
    def metrics(self) -> dict[str, float]:
        """The cost as plain numbers, as records and artefacts keep them."""
        return {
            "dynamic_flops": self.mean,
            "dynamic_flops_spread": self.spread,
            "dynamic_flops_without_overhead": self.products,
            "channel_share": self.share,
        }


def dynamic_cost(tallies: dict[str, Tally], dense: int) -> DynamicCost | None:
    """Return what a model of so many dense FLOPs cost on the samples seen; None where no dynamic layer was called."""
    called = [tally for tally in tallies.values() if tally.flops]
    if not called:
        return None
    rest = dense - sum(tally.dense for tally in called)
    flops_N = torch.stack([torch.cat(tally.flops) for tally in called]).sum(dim=0) + rest
    products_N = torch.stack([torch.cat(tally.products) for tally in called]).sum(dim=0) + rest
    shares = torch.stack([torch.cat(tally.shares).mean() for tally in called])
    return DynamicCost(
        mean=float(flops_N.mean()),
        spread=float(flops_N.std(correction=0)),
        products=float(products_N.mean()),
        share=float(shares.mean()),
    )
