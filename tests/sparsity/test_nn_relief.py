"""nn_relief: contributions and choices by hand, invariances, the bound on the signal."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoprune import masks
from autoprune.sparsity._contributions import contributions, scored_layers
from autoprune.sparsity.nn_relief import NnRelief, kept_connections
from autoprune.tasks import evaluate

from .conftest import MakeContext, network


def signals(model: nn.Module, context: Any) -> dict[str, Tensor]:
    return contributions(model, scored_layers(model), context, 1000, 0)[0]


def neuron() -> nn.Sequential:
    layer = nn.Linear(4, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[2.0, 1.0, -1.0, 0.5]]))
        layer.bias.fill_(0.25)
    return nn.Sequential(layer)


INPUTS = torch.tensor([[1.0, 1, 1, 1], [1, -3, 0, 1]])


def test_contributions_of_one_neuron_by_hand(make_context: MakeContext) -> None:
    found = signals(neuron(), make_context(INPUTS, torch.zeros(2)))["0.weight"]
    assert found.tolist() == [[2.0, 2.0, 0.5, 0.5, 0.25]]


@pytest.mark.parametrize(("alpha", "kept"), [(0.75, [1, 1, 0, 0, 0]), (0.85, [1, 1, 1, 1, 0]), (1.0, [1, 1, 1, 1, 1])])
def test_the_fewest_that_carry_the_signal_stay_with_what_ties(alpha: float, kept: list[int]) -> None:
    assert kept_connections(torch.tensor([[2.0, 2.0, 0.5, 0.5, 0.25]]), alpha).int().tolist() == [kept]


def test_connections_without_signal_never_stay() -> None:
    found = kept_connections(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), 1.0)
    assert found.tolist() == [[True, False], [False, False]]


def test_norms_of_maps_are_averaged_not_maps(make_context: MakeContext) -> None:
    layer = nn.Conv2d(2, 1, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, -0.5]).view(1, 2, 1, 1))
    maps = torch.tensor([[[[3.0, 0.0]], [[2.0, 2.0]]], [[[0.0, 3.0]], [[-2.0, 2.0]]]])
    found = signals(nn.Sequential(layer), make_context(maps, torch.zeros(2)))["0.weight"]
    assert found.tolist() == [pytest.approx([3.0, 1.414214], abs=1e-6)]


def test_a_convolution_adds_what_its_kernels_add_one_by_one(make_context: MakeContext) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 4, 3, stride=2, padding=1, groups=2)
    inputs = torch.randn(5, 6, 7, 7)
    found = signals(nn.Sequential(layer), make_context(inputs, torch.zeros(5)))["0.weight"]
    assert found.shape == (4, 4)
    for j in range(4):
        for i in range(3):
            alone = inputs[:, 3 * (j // 2) + i : 3 * (j // 2) + i + 1].abs()
            maps = nn.functional.conv2d(alone, layer.weight.detach()[j : j + 1, i : i + 1].abs(), stride=2, padding=1)
            assert float(found[j, i]) == pytest.approx(float(maps.flatten(1).norm(dim=1).mean()), rel=1e-5)
        assert float(found[j, 3]) == pytest.approx(abs(float(layer.bias.detach()[j])) * 4.0, rel=1e-6)


def test_scale_of_a_neuron_and_of_an_input_does_not_matter(make_context: MakeContext) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    context = make_context(torch.randn(40, 5), torch.arange(40) % 3)
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        scaled[0].weight[2] *= 4.0
        scaled[0].bias[2] *= 4.0
        scaled[2].weight[:, 2] /= 4.0
        scaled[2].weight[1] *= -8.0
        scaled[2].bias[1] *= -8.0
    for (name, a), b in zip(signals(model, context).items(), signals(scaled, context).values(), strict=True):
        assert torch.equal(kept_connections(a, 0.8), kept_connections(b, 0.8)), name


def test_more_signal_keeps_more_and_every_neuron_something() -> None:
    found = torch.rand(7, 9, generator=torch.Generator().manual_seed(0))
    masks_by_alpha = [kept_connections(found, alpha) for alpha in (0.0, 0.3, 0.7, 0.95, 1.0)]
    for less, more in zip(masks_by_alpha, masks_by_alpha[1:], strict=False):  # noqa: RUF007
        assert not bool((less & ~more).any())
    assert bool((masks_by_alpha[0].sum(dim=1) == 1).all())


@pytest.mark.parametrize("alpha", [0.6, 0.8, 0.95])
def test_a_pre_activation_changes_by_less_than_the_signal_given_up(alpha: float, make_context: MakeContext) -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Linear(12, 5), torch.randn(64, 12)
    found = signals(nn.Sequential(layer), make_context(inputs, torch.zeros(64)))["0.weight"]
    kept = kept_connections(found, alpha)
    pruned = nn.functional.linear(inputs, layer.weight * kept[:, :12], layer.bias * kept[:, 12])
    change = (pruned - layer(inputs)).abs().mean(dim=0).double()
    assert bool((change <= (1 - alpha) * found.sum(dim=1) + 1e-6 * found.sum(dim=1)).all())


def test_kernels_go_whole_and_a_bias_may_go(make_context: MakeContext) -> None:
    model = network()
    found = NnRelief(sparsity=0.5, rounds=2, epochs_between=0.5).sparsify(model, make_context())
    assert set(found.masks) == {"0.weight", "3.weight", "3.bias", "9.weight", "9.bias"}
    for name in ("0.weight", "3.weight"):
        whole = found.masks[name].flatten(2).sum(dim=2)
        assert set(whole.unique().tolist()) <= {0, 9}
    gone = ~found.masks["3.bias"]
    assert bool(gone.any())
    assert not bool(model[3].bias.detach()[gone].any())


def test_a_depthwise_filter_is_never_split(make_context: MakeContext) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4))
    found = NnRelief(sparsity=0.5, rounds=1).sparsify(model, make_context())
    assert bool(found.masks["0.weight"].all())
    assert found.notes[0].startswith("nn_relief leaves 0.weight dense")


def test_one_round_hurts_a_trained_network_less_than_removing_as_many_kernels_at_random(
    make_context: MakeContext,
) -> None:
    context, model = make_context(), network()
    context.train(model, 20.0, masks.Hold(masks.full(model)))
    pruned, other = copy.deepcopy(model), copy.deepcopy(model)
    found = NnRelief(sparsity=0.3, rounds=1).sparsify(pruned, context).masks
    draws = torch.Generator().manual_seed(0)
    for name, mask in found.items():
        kernels = mask.flatten(2).any(dim=2) if mask.ndim > 2 else mask
        drawn = masks.keep_random(kernels.shape, int(kernels.sum()), draws)
        masks.zero(other, {name: drawn.reshape(*drawn.shape, *[1] * (mask.ndim - drawn.ndim)).expand_as(mask)})
    losses = [evaluate(m, context.data.train, context.task).loss for m in (model, pruned, other)]
    assert losses[0] < losses[1] < 0.5 * losses[2]
