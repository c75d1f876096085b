"""Sparse FLOPs: two for every product with a weight that is not zero, at every position."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autoprune.cost import count_flops, count_sparse_flops, sparsity_of


def sparse(model: nn.Module, inputs: torch.Tensor) -> tuple[int, int]:
    flops = count_flops(model, inputs)
    return flops, count_sparse_flops(model, inputs, flops)


def test_zeros_of_a_convolution_and_a_linear_layer_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(12, 5))
    inputs = torch.randn(4, 2, 4, 4)
    # 54 weights at 2 x 2 positions, 60 weights at one
    assert sparse(model, inputs) == (2 * (54 * 4 + 60), 2 * (54 * 4 + 60))
    with torch.no_grad():
        model[0].weight.flatten()[:10] = 0.0
        model[2].weight.flatten()[:7] = 0.0
    assert sparse(model, inputs) == (2 * (54 * 4 + 60), 2 * (44 * 4 + 53))
    assert sparsity_of(model) == pytest.approx(17 / 114)


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (nn.Conv2d(4, 6, 3, groups=2), torch.randn(2, 4, 7, 5)),
        (nn.Conv1d(3, 5, 2, dilation=2), torch.randn(2, 3, 9)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), torch.randn(2, 4, 5, 5)),
        (nn.Linear(8, 3), torch.randn(2, 11, 8)),
    ],
)
def test_a_layer_of_half_zeros_costs_half(layer: nn.Module, inputs: torch.Tensor) -> None:
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    with torch.no_grad():
        weight.view(-1)[::2] = 0.0
    flops, left = sparse(nn.Sequential(layer), inputs)
    zeros = int((weight == 0).sum()) / weight.numel()
    assert flops > 0
    assert left == round(flops * (1 - zeros))


def test_a_layer_called_twice_counts_twice_and_modes_stay() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.layer(self.layer(x))
            return found

    model = Twice().train()
    with torch.no_grad():
        model.layer.weight[0] = 0.0
    assert sparse(model, torch.randn(3, 4)) == (64, 48)
    assert model.training
    assert not model.layer._forward_hooks


def test_a_model_without_such_layers_has_no_zeros() -> None:
    assert sparsity_of(nn.BatchNorm1d(4)) == 0.0
