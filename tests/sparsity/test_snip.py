"""SNIP: the gate gradient by hand, its invariances, exact counts."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoprune import masks
from autoprune.sparsity._gradients import mean_gradients
from autoprune.sparsity.snip import Snip
from autoprune.tasks import Task

from .conftest import MakeContext, network


def task_of(loss: Any) -> Task:
    return Task(loss=loss, metric=lambda output, targets: (0.0, len(targets)))


def half_square(output: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (output.squeeze(1) - 1).square().mean()


def linear(*rows: list[float]) -> nn.Linear:
    weight = torch.tensor(rows)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def sensitivities(model: nn.Module, context: Any, batches: int = 1, size: int = 1) -> dict[str, Tensor]:
    gradients, _ = mean_gradients(model, context, batches, size, 0, "train")
    return {name: weight.detach() * gradients[name] for name, weight in masks.prunable(model).items()}


def test_gate_gradients_of_one_neuron_by_hand(make_context: MakeContext) -> None:
    model = nn.Sequential(linear([1.0, -2.0, 0.5, 3.0]))
    context = make_context(torch.tensor([[2.0, 1, 4, 0]]), torch.zeros(1), task=task_of(half_square))
    assert sensitivities(model, context)["0.weight"].abs().tolist() == [[2.0, 2.0, 2.0, 0.0]]
    found = Snip(sparsity=0.25, batch_size=2).sparsify(model, context)
    # magnitude would keep the useless fourth weight, the plain gradient would rank the third highest
    assert found.masks["0.weight"].tolist() == [[True, True, True, False]]


def test_a_path_through_a_dead_unit_scores_zero(make_context: MakeContext) -> None:
    model = nn.Sequential(linear([1.0, 0.0], [0.0, -1.0]), nn.ReLU(), linear([2.0, 1.0]))
    context = make_context(torch.tensor([[1.0, 2.0]]), torch.zeros(1), task=task_of(half_square))
    found = sensitivities(model, context)
    assert found["0.weight"].abs().tolist() == [[2.0, 0.0], [0.0, 0.0]]
    assert found["2.weight"].abs().tolist() == [[2.0, 0.0]]


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    layers = (
        nn.Linear(5, 8, bias=False),
        nn.ReLU(),
        nn.Linear(8, 7, bias=False),
        nn.ReLU(),
        nn.Linear(7, 3, bias=False),
    )
    return nn.Sequential(*layers).double()


def perceptron_context(make_context: MakeContext, count: int = 16) -> Any:
    draws = torch.Generator().manual_seed(0)
    return make_context(torch.randn(count, 5, generator=draws, dtype=torch.float64), torch.arange(count) % 3)


def test_every_layer_has_the_same_signed_sum(make_context: MakeContext) -> None:
    found = sensitivities(perceptron(), perceptron_context(make_context), size=16)
    sums = [float(score.sum()) for score in found.values()]
    assert sums == pytest.approx([sums[0]] * 3, abs=1e-12)
    assert abs(sums[0]) > 1e-6


def test_moving_scale_between_layers_leaves_all_scores(make_context: MakeContext) -> None:
    context = perceptron_context(make_context)
    model = perceptron()
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        scaled[0].weight.mul_(7.0)
        scaled[2].weight.div_(7.0)
    for a, b in zip(sensitivities(model, context).values(), sensitivities(scaled, context).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


def test_two_batches_score_as_their_concatenation(make_context: MakeContext) -> None:
    context = perceptron_context(make_context)
    two, one = sensitivities(perceptron(), context, 2, 8), sensitivities(perceptron(), context, 1, 16)
    for a, b in zip(two.values(), one.values(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.99])
def test_exactly_so_many_weights_stay(sparsity: float, make_context: MakeContext) -> None:
    model = network()
    with torch.no_grad():
        model[3].weight.fill_(0.01)  # many tied scores
    found = Snip(sparsity=sparsity, batch_size=64).sparsify(model, make_context())
    assert masks.size(found.masks) == 288 + 1152 + 64
    assert masks.count(found.masks) == round((1 - sparsity) * 1504)


@pytest.mark.parametrize("norms", ["train", "eval"])
def test_statistics_gradients_and_modes_are_as_before(norms: Any, make_context: MakeContext) -> None:
    model = network()
    before = copy.deepcopy(dict(model.named_buffers()))
    Snip(norms=norms, batches=3, batch_size=16).sparsify(model, make_context())
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m.training for m in model.modules())


def test_norms_take_statistics_of_the_batch_or_their_own(make_context: MakeContext) -> None:
    model, context = network(), make_context()
    found = [mean_gradients(model, context, 1, 64, 0, mode)[0]["0.weight"] for mode in ("train", "eval")]
    assert not torch.allclose(found[0], found[1], rtol=0.05)


def test_ranking_inside_layers_gives_each_its_share(make_context: MakeContext) -> None:
    found = Snip(sparsity=0.75, scope="layer", batch_size=64).sparsify(network(), make_context())
    assert [int(m.sum()) for m in found.masks.values()] == [72, 288, 16]
