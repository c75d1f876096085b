"""Magnitude: the largest stay, over the network or in every layer, anywhere or by a pattern."""

from __future__ import annotations

import torch

from autoprune import masks
from autoprune.sparsity.magnitude import Magnitude

from .conftest import MakeContext, network


def test_the_largest_of_the_network_stay(make_context: MakeContext) -> None:
    model = network()
    sizes = torch.cat([w.detach().abs().flatten() for w in masks.prunable(model).values()])
    found = Magnitude(sparsity=0.7).sparsify(model, make_context()).masks
    kept = torch.cat([m.flatten() for m in found.values()])
    assert int(kept.sum()) == round(0.3 * 1504)
    # one weight may be there for a layer that would be empty
    assert int((kept & (sizes < sizes[~kept].max())).sum()) <= 1


def test_the_same_share_of_every_layer(make_context: MakeContext) -> None:
    found = Magnitude(sparsity=0.75, scope="layer").sparsify(network(), make_context()).masks
    assert [int(m.sum()) for m in found.values()] == [72, 288, 16]


def test_two_of_four_by_magnitude(make_context: MakeContext) -> None:
    model = network()
    before = model[9].weight.detach().clone()
    found = Magnitude(sparsity=0.5, pattern="2_of_4").sparsify(model, make_context()).masks
    best = before.abs().view(4, 4, 4).topk(2, dim=2).values.sum()
    assert torch.isclose(model[9].weight.detach().abs().sum(), best)
    assert bool((found["9.weight"].view(4, 4, 4).sum(dim=2) == 2).all())
