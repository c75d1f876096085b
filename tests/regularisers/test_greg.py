"""Both growing penalties."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from autoprune.graph import Structure, trace
from autoprune.regularisers._growing import Growth, Pick
from autoprune.regularisers.greg_1 import Greg1
from autoprune.regularisers.greg_2 import Greg2
from autoprune.trial import Bench, prepare

from .conftest import largest


def two_weights(values: tuple[float, float]) -> tuple[nn.Sequential, Structure]:
    """A group of two units with one weight each."""
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 3)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(values)[:, None])
    return model, trace(model, torch.ones(2, 1))


def growth(model: nn.Module, structure: Structure, **changes: Any) -> Growth:
    settings: dict[str, Any] = {
        "choose": lambda now: largest(now, structure), "growth": 1e-4, "every": 10, "ceiling": 1.0,
        "ratio_limit": 1e9, "stabilise": 3,
    }  # fmt: skip
    return Growth(model, structure, **(settings | changes))


def steps(growing: Growth, count: int) -> None:
    for _ in range(count):
        growing.before_step(growing.step)


def test_the_first_kind_counts_its_updates() -> None:
    model, structure = two_weights((1.0, 2.0))
    growing = growth(model, structure)
    (group,) = growing.groups.values()
    for iteration in (0, 9, 10, 999):
        steps(growing, iteration + 1 - growing.step)
        assert group.reg_C.tolist() == [1e-4 * (iteration // 10 + 1), 0.0]
    steps(growing, 100_000 - growing.step)
    assert not group.finished
    steps(growing, 1)
    assert group.finished
    assert float(group.reg_C.max()) == pytest.approx(1.0001)
    assert not growing.enough()
    steps(growing, 2)
    assert growing.enough()
    assert growing.step <= growing.most_steps


def test_the_second_kind_picks_at_its_thousandth_update() -> None:
    model, structure = two_weights((1.0, 2.0))
    asked: list[int] = []

    def choose(now: nn.Module) -> Mapping[str, list[int]]:
        asked.append(growing.step if asked else -1)
        return largest(now, structure)

    growing: Growth = growth(model, structure, choose=choose, pick=Pick(growth=1e-5, ceiling=1e-2, recover=-1e-4))
    (group,) = growing.groups.values()
    steps(growing, 501)
    assert group.reg_C.tolist() == pytest.approx([51e-5, 51e-5])
    steps(growing, 9991 - growing.step)
    assert asked == [-1, 9990]
    assert group.reg_C.tolist() == pytest.approx([0.01, 0.01])
    steps(growing, 10)
    assert group.reg_C.tolist() == pytest.approx([0.0101, -1e-4])


def descend(growing: Growth, weight: nn.Parameter, curvature: torch.Tensor, minimum: torch.Tensor, count: int) -> None:
    for _ in range(count):
        weight.grad = (curvature * (weight.detach()[:, 0] - minimum))[:, None]
        growing.before_step(growing.step)
        with torch.no_grad():
            weight.sub_(0.05 * weight.grad)


def test_curvature_shows_in_the_weights_and_decides() -> None:
    model, structure = two_weights((1.0, 1.2))
    assert largest(model, structure)["0"] == [1]  # by magnitude alone the first would go
    pick = Pick(growth=1e-3, ceiling=1.0, recover=0.0)
    growing = growth(model, structure, pick=pick)
    descend(growing, model[0].weight, torch.tensor([10.0, 1.0]), torch.tensor([1.0, 1.2]), 9990)
    assert growing.picking
    descend(growing, model[0].weight, torch.tensor([10.0, 1.0]), torch.tensor([1.0, 1.2]), 10)
    assert model[0].weight.flatten().tolist() == pytest.approx([0.909091, 0.600161], abs=1e-3)
    assert not growing.picking
    (group,) = growing.groups.values()
    assert group.gone_C.tolist() == [False, True]


@pytest.mark.parametrize(("penalty", "expected"), [(1.0, (0.8, 0.5)), (3.0, (0.571429, 0.25))])
def test_the_stationary_point_of_a_quadratic_loss(penalty: float, expected: tuple[float, float]) -> None:
    model, structure = two_weights((1.0, 1.0))
    pick = Pick(growth=penalty, ceiling=1e6, recover=0.0)
    growing = growth(model, structure, pick=pick, every=10_000)
    descend(growing, model[0].weight, torch.tensor([4.0, 1.0]), torch.ones(2), 2000)
    assert model[0].weight.flatten().tolist() == pytest.approx(list(expected), abs=1e-5)


def test_only_weights_that_produce_the_units_to_go_are_penalised(network: Any, four_classes: Any) -> None:
    model = network()
    inputs, targets = next(four_classes.batches(32))
    structure = trace(model, inputs[:2])
    growing = growth(model, structure, growth=0.3)
    nn.functional.cross_entropy(model(inputs), targets).backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    growing.before_step(growing.step)
    keep = largest(model, structure)
    for name, parameter in model.named_parameters():
        expected = before[name].clone()
        if name in ("0.weight", "4.weight"):
            kept = set(keep[name.partition(".")[0]])
            gone = [i for i in range(len(parameter)) if i not in kept]
            assert gone
            expected[gone] += 0.3 * parameter.detach()[gone]
        assert torch.allclose(parameter.grad, expected, atol=1e-7)


def test_a_group_of_which_nothing_goes_has_no_penalty(network: Any, four_classes: Any) -> None:
    model = network()
    inputs, _ = next(four_classes.batches(2))
    structure = trace(model, inputs)
    growing = growth(model, structure, choose=lambda _: {"0": [*range(15)], "4": [*range(32)]})
    assert set(growing.groups) == {"0"}
    steps(growing, 1)
    assert float(growing.groups["0"].reg_C[15]) == 1e-4
    assert growth(model, structure, choose=lambda _: {}).groups == {}


SMALL = {"growth": 0.05, "every": 5, "stabilise": 100, "lr": 0.05, "batch_size": 32, "weight_decay": 0.0}


@pytest.mark.parametrize("kind", [Greg1, Greg2])
def test_removal_is_harmless_in_the_end_and_is_not_at_the_start(kind: type[Greg1], make_context: Any) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip
    context = make_context(model)
    inputs, _ = next(context.data.train.batches(64))
    chosen: list[Mapping[str, list[int]]] = []

    def choose(now: nn.Module) -> Mapping[str, list[int]]:
        chosen.append(largest(now, context.structure))
        return chosen[-1]

    def harm() -> float:
        with torch.no_grad():
            # the biases of what goes are no part of the penalty: what they emit is left in both
            full, masked = model(inputs), masked_weights(model, chosen[-1])(inputs)
        return float((full - masked).norm() / full.norm())

    context = make_context(model, choose=choose)
    choose(model)
    before = harm()
    more = {"pick_growth": 0.005} if kind is Greg2 else {}
    shaped = kind(**SMALL, **more).shape(model, context)
    assert shaped.as_chosen
    assert harm() < 0.01 < before


def masked_weights(model: nn.Module, keep: Mapping[str, list[int]]) -> nn.Module:
    import copy

    masked = copy.deepcopy(model)
    for name, kept in keep.items():
        weight = masked.get_submodule(name).weight
        gone = [i for i in range(len(weight)) if i not in set(kept)]  # type: ignore[arg-type]
        weight.data[gone] = 0.0  # type: ignore[union-attr,operator]
    return masked


def test_a_trial_cuts_what_was_penalised(digits_bench: Bench) -> None:
    from autoprune.recipe import Recipe

    regulariser = {"name": "greg_1", **SMALL, "stabilise": 20, "growth": 0.2}
    recipe = Recipe.parse({"criterion": "l1_norm", "allocation": "uniform", "regulariser": regulariser})
    prepared = prepare(recipe, digits_bench, seed=0)
    plain = prepare(Recipe.parse({"criterion": "l1_norm", "allocation": "uniform"}), digits_bench, seed=0)
    assert prepared.kept == plain.kept  # chosen from the base model's weights
    assert prepared.cost.trained_samples % 32 == 0
    assert 0 < prepared.cost.trained_samples <= 32 * (7 * 5 + 20)
