"""Han 2015: thresholds of layers by their spread, rounds, dropout."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from autoprune import masks
from autoprune.errors import BadRecipe
from autoprune.masks import Hold
from autoprune.sparsity._dropout import lowered_dropout
from autoprune.sparsity.han_2015 import Han2015, distances, spread

from .conftest import MakeContext, Trainer, network

WEIGHT = torch.tensor([[0.1, -0.2, 0.3], [-0.4, 0.5, -0.6]])


def test_the_spread_divides_by_the_number_of_entries() -> None:
    assert spread(WEIGHT) == pytest.approx(0.386221, abs=1e-6)
    # over the five entries that are left once 0.1 is gone
    assert spread(WEIGHT[WEIGHT != 0.1]) == pytest.approx(0.416653, abs=1e-6)


@pytest.mark.parametrize(("q", "kept"), [(0.5, [[0, 1, 1], [1, 1, 1]]), (1.0, [[0, 0, 0], [1, 1, 1]])])
def test_what_lies_above_a_threshold_by_hand(q: float, kept: list[list[int]]) -> None:
    above = distances({"w": WEIGHT}, {"w": spread(WEIGHT)}, {"w": q})["w"] > 1
    assert above.int().tolist() == kept


def test_quality_parameters_go_by_kind_and_place() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1), nn.Flatten(), nn.Linear(2, 2), nn.Linear(2, 2))
    assert list(Han2015().qualities(model).values()) == [0.25, 0.45, 0.875, 0.625]


def test_a_layer_of_smaller_quality_loses_less(make_context: MakeContext) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 20, bias=False), nn.Linear(20, 4, bias=False))
    with torch.no_grad():
        for i in (1, 2):
            model[i].weight.normal_(generator=torch.Generator().manual_seed(i))
    found = Han2015(sparsity=0.5, rounds=1, q_linear=1.0, q_last_linear=0.5).sparsify(model, make_context())
    removed = [1 - float(m.float().mean()) for m in found.masks.values()]
    # one threshold c: P(|z| < c) = 0.51 or so in the first layer, P(|z| < c / 2) in the last
    assert removed[0] == pytest.approx(0.505, abs=0.02)
    assert removed[1] == pytest.approx(0.27, abs=0.09)


def test_rounds_are_nested_exact_and_their_threshold_rises_linearly(make_context: MakeContext) -> None:
    model, context = network(), make_context()
    before = {name: w.detach().clone() for name, w in masks.prunable(model).items()}
    method = Han2015(sparsity=0.8, rounds=4, epochs_between=0.25)
    found = method.sparsify(model, context)
    assert isinstance(context.train, Trainer)
    seen = [m for _, m in context.train.calls] + [found.masks]
    assert [epochs for epochs, _ in context.train.calls] == [0.25] * 3
    for a, b in zip(seen, seen[1:], strict=False):  # noqa: RUF007
        assert not any(bool((b[n] & ~a[n]).any()) for n in b)
    scores = distances(before, {n: spread(w) for n, w in before.items()}, method.qualities(model))
    flat = torch.cat([s.flatten() for s in scores.values()]).sort(descending=True).values
    threshold = flat[301 - 1]
    assert [masks.count(m) for m in seen] == [*(int((flat > threshold * i / 4).sum()) for i in (1, 2, 3)), 301]


def test_the_cached_spread_makes_a_second_look_change_nothing(make_context: MakeContext) -> None:
    once, twice = (
        Han2015(sparsity=0.8, rounds=n, epochs_between=0.0).sparsify(network(), make_context()).masks for n in (1, 5)
    )
    assert all(torch.equal(once[n], twice[n]) for n in once)


def test_a_spread_of_what_is_left_can_choose_differently(make_context: MakeContext) -> None:
    settings: dict[str, Any] = {"sparsity": 0.8, "rounds": 5, "epochs_between": 0.0}
    initial, left = (
        Han2015(spread=s, **settings).sparsify(network(), make_context()).masks for s in ("initial", "alive")
    )
    assert masks.count(initial) == masks.count(left)
    assert not all(torch.equal(initial[n], left[n]) for n in initial)


def test_dropout_follows_the_connections_that_are_left() -> None:
    model = nn.Sequential(nn.Linear(10, 10), nn.Dropout(0.5), nn.Linear(10, 10), nn.Dropout(0.5))
    mask = torch.zeros(10, 10, dtype=torch.bool)
    mask[0] = True
    found = {"0.weight": mask, "2.weight": torch.ones(10, 10, dtype=torch.bool)}
    for _ in range(2):  # from the original rate both times
        with lowered_dropout(model, found):
            assert [model[1].p, model[3].p] == pytest.approx([0.158114, 0.5], abs=1e-6)
    assert [model[1].p, model[3].p] == [0.5, 0.5]


def test_removed_connections_stay_dead_under_momentum_and_decay(make_context: MakeContext) -> None:
    context = make_context(momentum=0.9, weight_decay=0.01)
    model = network()
    found = Han2015(sparsity=0.8, rounds=2, epochs_between=1.0).sparsify(model, context)
    before = copy.deepcopy(model.state_dict())
    context.train(model, 2.5, Hold(found.masks))  # 20 steps
    for name, mask in found.masks.items():
        weight = model.get_parameter(name).detach()
        assert not bool(weight[~mask].any())
        assert bool((weight[mask] != before[name][mask]).all())


def test_two_of_four_inputs_stay_wherever_inputs_divide(make_context: MakeContext) -> None:
    found = Han2015(sparsity=0.5, pattern="2_of_4", rounds=2, epochs_between=0.25).sparsify(network(), make_context())
    for mask in found.masks.values():
        grouped = mask.movedim(1, -1).reshape(-1, 4)
        assert bool((grouped.sum(dim=1) == 2).all())
    assert found.notes == ()


def test_a_pattern_and_another_sparsity_contradict() -> None:
    with pytest.raises(
        BadRecipe, match=r"pattern 2_of_4 makes a sparsity of 0\.5, got sparsity 0\.9; set sparsity to 0\.5"
    ):
        Han2015(sparsity=0.9, pattern="2_of_4")


def test_layers_that_a_pattern_does_not_fit_stay_dense_and_are_named(make_context: MakeContext) -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1), nn.Flatten(), nn.Linear(216, 4), nn.Linear(4, 3), nn.Linear(3, 4)
    )
    found = Han2015(sparsity=0.75, pattern="1_of_4", rounds=1).sparsify(model, make_context())
    assert [float(m.float().mean()) for m in found.masks.values()] == [0.25, 0.25, 0.25, 1.0]
    assert found.notes == ("pattern 1_of_4 leaves 4.weight dense: inputs no multiple of 4",)
    with pytest.raises(BadRecipe, match="pattern 4_of_8 fits no layer"):
        Han2015(sparsity=0.5, pattern="4_of_8", rounds=1).sparsify(nn.Linear(4, 4), make_context())
