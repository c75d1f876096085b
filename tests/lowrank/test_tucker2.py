from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoprune.lowrank.tucker2 import Tucker2, tucker2


def weight_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def product_of(first_IP: Tensor, core: Tensor, last_OQ: Tensor) -> Tensor:
    return torch.einsum("ip,qphw,oq->oihw", first_IP, core, last_OQ)


def conv_of(weight: Tensor, **keywords: Any) -> nn.Conv2d:
    o, i, *kernel = weight.shape
    conv = nn.Conv2d(i, o, tuple(kernel), **keywords).double()  # type: ignore[arg-type]
    conv.weight.data = weight
    return conv


def test_a_kernel_with_two_channels_that_matter_by_hand() -> None:
    # output 0 reads input 0 by 3, output 2 reads input 1 by 2, output 1 reads input 2 by 1: ranks (2, 2) keep 3 and 2
    weight = torch.zeros(3, 3, 1, 2).double()
    weight[0, 0, 0, 0], weight[2, 1, 0, 1], weight[1, 2, 0, 0] = 3.0, 2.0, 1.0
    first, core, last = tucker2(weight, 2, 2)
    expected = weight.clone()
    expected[1, 2] = 0
    torch.testing.assert_close(product_of(first, core, last), expected)
    assert core.square().sum() == pytest.approx(9 + 4)


@pytest.mark.parametrize(("p", "q"), [(1, 1), (2, 3), (3, 2)])
def test_a_weight_of_these_ranks_is_found_exactly(p: int, q: int) -> None:
    core = weight_of(q, p, 3, 3, seed=1)
    weight = product_of(weight_of(5, p, seed=2), core, weight_of(6, q, seed=3))
    torch.testing.assert_close(product_of(*tucker2(weight, p, q)), weight)


@pytest.mark.parametrize(("p", "q"), [(1, 1), (2, 4), (4, 2), (3, 5)])
def test_axes_are_orthonormal_and_alternating_beats_the_plain_singular_vectors(p: int, q: int) -> None:
    weight = weight_of(6, 5, 3, 3)
    first, core, last = tucker2(weight, p, q)
    torch.testing.assert_close(first.T @ first, torch.eye(p).double())
    torch.testing.assert_close(last.T @ last, torch.eye(q).double())
    # with orthonormal axes, what is lost is what the core does not hold
    lost = (product_of(first, core, last) - weight).square().sum()
    assert lost == pytest.approx(float(weight.square().sum() - core.square().sum()))
    plain_last = torch.linalg.svd(weight.flatten(1))[0][:, :q]
    plain_first = torch.linalg.svd(weight.transpose(0, 1).flatten(1))[0][:, :p]
    plain = torch.einsum("oihw,ip,oq->qphw", weight, plain_first, plain_last).square().sum()
    assert core.square().sum() > plain
    # neither axis alone can keep more: a stationary point
    by_outputs = torch.einsum("oihw,oq->iqhw", weight, last).flatten(1)
    assert core.square().sum() == pytest.approx(float(torch.linalg.svdvals(by_outputs)[:p].square().sum()), rel=1e-4)


def test_one_rank_keeps_the_same_share_of_both_axes() -> None:
    layers: Any = Tucker2().factor(conv_of(weight_of(8, 4, 3, 3), stride=2, padding=1, dilation=2), 3)
    first, core, last = layers
    # 3 of 8: ceil(4 * 3 / 8) = 2 in, 3 out
    assert [tuple(layer.weight.shape) for layer in layers] == [(2, 4, 1, 1), (3, 2, 3, 3), (8, 3, 1, 1)]
    assert (core.stride, core.padding, core.dilation) == ((2, 2), (1, 1), (2, 2))
    assert {(layer.stride, layer.padding, layer.dilation) for layer in (first, last)} == {((1, 1), (0, 0), (1, 1))}
    assert first.bias is None
    assert core.bias is None


@pytest.mark.parametrize(
    ("shape", "full"),
    [
        ((8, 4, 3, 3), 8),
        ((4, 9, 3, 3), 9),
        ((64, 3, 3, 3), 27),  # three inputs of nine positions fill no more than 27 outputs
        ((2, 40, 1, 3), 6),  # two outputs of three positions read no more than six directions
        ((8, 5, 1, 1), 5),  # no kernel: a matrix
    ],
)
def test_full_rank_by_hand(shape: tuple[int, ...], full: int, layer_of: Any) -> None:
    o, i, *kernel = shape
    layer = layer_of(nn.Conv2d(i, o, tuple(kernel)), torch.zeros(1, i, 8, 8))  # type: ignore[arg-type]
    assert Tucker2().full_rank(layer, i, o) == full


def test_cost_by_hand(layer_of: Any) -> None:
    # 4 -> 8 channels, 3x3 with stride 2 on 9 x 11: out 5 x 6; rank 4 is 2 in and 4 out
    layer = layer_of(nn.Conv2d(4, 8, 3, stride=2, padding=1), torch.zeros(1, 4, 9, 11))
    assert Tucker2().flops(layer, 4, 8, 4) == 2 * (4 * 2 * 99 + (2 * 4 * 9 + 4 * 8) * 30)
    assert Tucker2().params(layer, 4, 8, 4) == 4 * 2 + 2 * 4 * 9 + 4 * 8 + 8


def test_the_rank_for_so_many_flops_is_the_largest(layer_of: Any) -> None:
    method, layer = Tucker2(), layer_of(nn.Conv2d(12, 20, 3, padding=1), torch.zeros(1, 12, 7, 7))
    costs = [method.flops(layer, 12, 20, rank) for rank in range(1, 21)]
    assert costs == sorted(costs)
    for rank, (cost, following) in enumerate(itertools.pairwise(costs), start=1):
        assert method.largest_rank(layer, 12, 20, cost) == rank
        assert method.largest_rank(layer, 12, 20, following - 1) == rank
    assert method.largest_rank(layer, 12, 20, costs[0] - 1) == 1
    assert method.largest_rank(layer, 12, 20, 10 * costs[-1]) == 20


def test_the_energy_told_is_never_more_than_what_is_kept() -> None:
    weight = weight_of(8, 5, 3, 3)
    told = Tucker2(ranks="energy").kept_energy(weight, None)
    assert told.shape == (8,)
    assert bool((told.diff() >= 0).all())
    assert float(told[-1]) == pytest.approx(1.0)
    for rank, share in enumerate(told.tolist(), start=1):
        _, core, _ = tucker2(weight, -(-5 * rank // 8), rank)
        assert share <= float(core.square().sum() / weight.square().sum()) + 1e-12
