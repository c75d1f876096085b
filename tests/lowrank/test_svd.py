from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoprune.errors import BadRecipe
from autoprune.lowrank._matrices import as_matrix, as_weights, truncated_svd
from autoprune.lowrank.svd import Svd


def product_of(pair: Any) -> Tensor:
    """Return the (O, I, H, W) weight that two convolutions make together."""
    if pair[1].weight.shape[2:] == (1, 1):
        return torch.einsum("or,rihw->oihw", pair[1].weight[:, :, 0, 0], pair[0].weight)
    return torch.einsum("orw,rih->oihw", pair[1].weight[:, :, 0], pair[0].weight[..., 0])


def test_the_smallest_singular_value_goes_by_hand() -> None:
    layer = nn.Linear(3, 3).double()
    layer.weight.data = torch.diag(torch.tensor([2.0, 4.0, 1.0])).double()
    pair: Any = Svd().factor(layer, 2)
    product = pair[1].weight @ pair[0].weight
    torch.testing.assert_close(product, torch.diag(torch.tensor([2.0, 4.0, 0.0])).double())
    # each factor has the square roots: 2 of 4 and 1.414 of 2
    for factor in (pair[0].weight, pair[1].weight.T):
        torch.testing.assert_close(factor.norm(dim=1), torch.tensor([2.0, math.sqrt(2.0)]).double())
    assert pair[0].bias is None
    assert torch.equal(pair[1].bias, layer.bias)


@pytest.mark.parametrize("scheme", ["spatial", "channel"])
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_the_error_is_the_tail_of_the_singular_values(scheme: str, rank: int) -> None:
    conv = nn.Conv2d(4, 6, (3, 2)).double()
    weight = conv.weight.detach()
    if scheme == "channel":
        matrix = weight.reshape(6, 24)
    else:
        matrix = torch.stack([weight[:, i, h].reshape(-1) for i in range(4) for h in range(3)])
    tail = torch.linalg.svdvals(matrix)[rank:].square().sum().sqrt()
    error = (product_of(Svd(scheme=scheme).factor(conv, rank)) - weight).norm()
    torch.testing.assert_close(error, tail)


def test_a_separable_kernel_has_spatial_rank_one() -> None:
    conv = nn.Conv2d(2, 2, 3, bias=False).double()
    column, row = torch.tensor([1.0, 2.0, 1.0]).double(), torch.tensor([1.0, 0.0, -1.0]).double()
    mixing = torch.tensor([[1.0, 3.0], [2.0, 6.0]]).double()  # rank one: (1, 2) times (1, 3)
    conv.weight.data = torch.einsum("oi,h,w->oihw", mixing, column, row)
    torch.testing.assert_close(product_of(Svd(scheme="spatial").factor(conv, 1)), conv.weight)


@pytest.mark.parametrize(("scheme", "kernels"), [("spatial", [(3, 1), (1, 5)]), ("channel", [(3, 5), (1, 1)])])
def test_geometry_goes_with_its_axis(scheme: str, kernels: list[tuple[int, int]]) -> None:
    conv = nn.Conv2d(4, 6, (3, 5), stride=(2, 3), padding=(1, 2), dilation=(1, 2))
    pair: Any = Svd(scheme=scheme).factor(conv, 2)
    first, second = pair
    assert [first.kernel_size, second.kernel_size] == kernels
    assert (first.stride, second.stride) == (((2, 1), (1, 3)) if scheme == "spatial" else ((2, 3), (1, 1)))
    assert (first.padding, second.padding) == (((1, 0), (0, 2)) if scheme == "spatial" else ((1, 2), (0, 0)))
    assert (first.dilation, second.dilation) == (((1, 1), (1, 2)) if scheme == "spatial" else ((1, 2), (1, 1)))


@pytest.mark.parametrize(
    ("scheme", "shape", "full"),
    [
        ("spatial", (6, 4, 3, 5), 12),  # min(4 * 3, 6 * 5)
        ("spatial", (2, 9, 3, 5), 10),  # min(9 * 3, 2 * 5)
        ("channel", (6, 4, 3, 5), 6),  # min(6, 4 * 15)
        ("channel", (40, 2, 3, 3), 18),  # min(40, 2 * 9)
        ("spatial", (8, 5, 1, 1), 5),  # a matrix of 8 x 5
        ("spatial", (20, 5, 1, 3), 15),  # no second axis to split: min(20, 5 * 3)
    ],
)
def test_full_rank_by_hand(scheme: str, shape: tuple[int, ...], full: int, layer_of: Any) -> None:
    o, i, *kernel = shape
    conv = nn.Conv2d(i, o, tuple(kernel))  # type: ignore[arg-type]
    layer = layer_of(conv, torch.zeros(1, i, 8, 8))
    assert Svd(scheme=scheme).full_rank(layer, i, o) == full


def test_spatial_cost_by_hand(layer_of: Any) -> None:
    # 4 -> 6 channels, 3x3 with stride 2 on 9 x 11: out 5 x 6, and 5 x 11 between the column and the row
    layer = layer_of(nn.Conv2d(4, 6, 3, stride=2, padding=1), torch.zeros(1, 4, 9, 11))
    assert Svd().flops(layer, 4, 6, 2) == 2 * (2 * 4 * 3 * 5 * 11 + 2 * 6 * 3 * 5 * 6)
    assert Svd().params(layer, 4, 6, 2) == 2 * 4 * 3 + 2 * 6 * 3 + 6


def test_rank_fractions_per_layer(layer_of: Any) -> None:
    plain = layer_of(nn.Linear(4, 4), torch.zeros(1, 4))
    layers = [replace(plain, name=n, weight=f"{n}.weight") for n in ("a.conv1", "a.conv2", "b.conv1")]
    assert Svd(rank_fraction=0.4).rank_fractions(layers) == {"a.conv1": 0.4, "a.conv2": 0.4, "b.conv1": 0.4}
    chosen = Svd(rank_fraction={"*.conv1": 0.5, "b.conv1": 0.25})
    assert chosen.rank_fractions(layers) == {"a.conv1": 0.5, "a.conv2": 1.0, "b.conv1": 0.25}
    with pytest.raises(BadRecipe, match=r"Svd.rank_fraction: no layer matches 'c.\*'"):
        Svd(rank_fraction={"c.*": 0.5}).rank_fractions(layers)


@pytest.mark.parametrize("axes", [(True, True), (True, False), (False, True), (False, False)])
def test_any_split_of_the_axes_gives_back_the_weight(axes: tuple[bool, bool]) -> None:
    weight = torch.randn(3, 4, 2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = as_matrix(weight, axes)
    first, second = as_weights(*truncated_svd(matrix, min(matrix.shape)), tuple(weight.shape), axes)
    product = torch.einsum("riab,orcd->oiacbd", first, second).reshape(weight.shape)
    torch.testing.assert_close(product, weight)
