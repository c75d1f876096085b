from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from autoprune.criteria.l1_norm import L1Norm
from autoprune.errors import NotApplicable
from autoprune.evidence import ModelEvidence
from autoprune.graph import Structure

Look = Callable[[nn.Module, torch.Tensor], tuple[Structure, ModelEvidence]]


def plain(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(width * 16, 3)
    )


def test_by_hand_row_sums_of_absolute_weights(look: Look) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[10.0, -1.0, 1.0], [1.0, 3.0, -3.0], [2.0, 4.0, 0.0]]))
    structure, evidence = look(model, torch.randn(16, 3))
    assert L1Norm().score(structure.group("0"), evidence).tolist() == [12, 7, 6]


def test_bias_and_norm_scale_are_not_part_of_it(look: Look) -> None:
    model = plain(5)
    images = torch.randn(16, 2, 4, 4)
    structure, evidence = look(model, images)
    before = L1Norm().score(structure.groups[0], evidence)
    assert torch.allclose(before, model[0].weight.double().abs().flatten(1).sum(1))
    with torch.no_grad():
        model[0].bias.add_(3.0)
        model[1].weight.mul_(7.0)
    assert torch.equal(before, L1Norm().score(structure.groups[0], look(model, images)[1]))


class _TwoProducers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.first(x) + self.second(x))


def test_layers_of_one_stream_count_alike_whatever_their_scale(look: Look) -> None:
    model = _TwoProducers()
    with torch.no_grad():
        model.first.weight.copy_(torch.tensor([[1.0, 1.0, 1.0], [3.0, 3.0, 3.0]]))  # 3 and 9, mean 6
        model.second.weight.copy_(torch.tensor([[100.0, 100.0, 100.0], [50.0, 25.0, 25.0]]))  # 300, 100; mean 200
    structure, evidence = look(model, torch.randn(16, 3))
    # (3/6 + 300/200)/2 = 1 and (9/6 + 100/200)/2 = 1, times the mean of the means 103
    assert L1Norm().score(structure.group("first"), evidence).tolist() == [103.0, 103.0]


def test_greedy_leaves_out_what_reads_units_that_went_before(look: Look) -> None:
    """Rows (12, 7, 6) lose row 2 first; without the first column they are (2, 6, 4) and lose row 0."""
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 1, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.1, 0.1], [1.0, 1.0], [2.0, 1.0]])[:, :, None, None])
        model[3].weight.copy_(torch.tensor([[10.0, 1, -1], [-1.0, 3, 3], [2.0, 4, 0]])[:, :, None, None])
    structure, evidence = look(model, torch.randn(16, 2, 4, 4))
    middle = structure.group("3")
    greedy = L1Norm(strategy="greedy", keep_fraction=0.7)
    assert L1Norm().score(middle, evidence).tolist() == [12, 7, 6]
    assert greedy.score(middle, evidence).tolist() == [2, 6, 4]
    assert L1Norm(strategy="greedy", keep_fraction=1.0).score(middle, evidence).tolist() == [12, 7, 6]
    assert torch.equal(greedy.score(structure.group("0"), evidence), L1Norm().score(structure.group("0"), evidence))


class _Residual(nn.Module):
    """A stem writes one stream, a projection and the end of a block's branch write the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.inside, self.end = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 5, 1)
        self.projection, self.again, self.last = nn.Conv2d(4, 5, 1), nn.Conv2d(5, 5, 3, padding=1), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.end(torch.relu(self.inside(x))) + self.projection(x))
        return self.last(torch.relu(x + self.again(x)).mean((2, 3)))


def test_the_shortcut_decides_or_streams_stay_whole(look: Look) -> None:
    model = _Residual()
    structure, evidence = look(model, torch.randn(16, 2, 4, 4))
    stream = next(g for g in structure.groups if g.is_stream)
    assert {p.module for p in stream.producers} == {"end", "projection", "again"}
    by_hand = model.projection.weight.double().abs().flatten(1).sum(1)
    assert torch.equal(L1Norm(streams="leader").score(stream, evidence), by_hand.detach())
    assert not torch.allclose(L1Norm().score(stream, evidence), by_hand)
    with pytest.raises(NotApplicable, match="residual streams whole"):
        L1Norm(streams="whole").score(stream, evidence)
    single = structure.group("inside")
    for streams in ("leader", "whole"):
        assert torch.equal(L1Norm(streams=streams).score(single, evidence), L1Norm().score(single, evidence))
