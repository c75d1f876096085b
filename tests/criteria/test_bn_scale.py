from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from autoprune.criteria.bn_scale import BnScale
from autoprune.errors import NotApplicable
from autoprune.evidence import ModelEvidence
from autoprune.graph import Structure

Look = Callable[[nn.Module, torch.Tensor], tuple[Structure, ModelEvidence]]


def test_magnitude_of_the_scale_whatever_its_sign(look: Look) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.Flatten())
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.5, -0.25, 0.0, 2.0]))
    structure, evidence = look(model, torch.randn(16, 1, 1, 1))
    assert BnScale().score(structure.group("0"), evidence).tolist() == [0.5, 0.25, 0.0, 2.0]


class _Stream(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
        self.second = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
        self.head = nn.Conv2d(2, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.first(x) + self.second(x)).flatten(1)


def test_a_stream_has_the_mean_over_the_norms_that_write_it(look: Look) -> None:
    model = _Stream()
    with torch.no_grad():
        model.first[1].weight.copy_(torch.tensor([1.0, 0.5]))
        model.second[1].weight.copy_(torch.tensor([-3.0, 0.1]))
    structure, evidence = look(model, torch.randn(16, 1, 1, 1))
    assert BnScale().score(structure.groups[0], evidence).tolist() == pytest.approx([2.0, 0.3])


def test_without_a_norm_it_does_not_apply(look: Look) -> None:
    structure, evidence = look(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)), torch.randn(16, 3))
    with pytest.raises(NotApplicable, match="bn_scale needs a normalisation with a scale; group '0' has none"):
        BnScale().score(structure.group("0"), evidence)
