from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from autoprune.criteria.l1_norm import L1Norm
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
