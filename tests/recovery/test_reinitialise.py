from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from autoprune import presets
from autoprune.errors import BadRecipe
from autoprune.recipe import Recipe
from autoprune.recovery.reinitialise import Reinitialise
from autoprune.recovery.scratch import Scratch
from autoprune.trial import Bench, prepare, run_trial


def scratch(**changes: Any) -> Recipe:
    return Recipe.parse({"criterion": "l1_norm", "recovery": ["reinitialise"], "epochs": 0} | changes)


def test_the_architecture_is_kept_and_no_weight_is(digits_bench: Bench) -> None:
    inherited = prepare(scratch(recovery=[]), digits_bench, 0).compressed.model.state_dict()
    first, again, other = (prepare(scratch(), digits_bench, s).compressed.model.state_dict() for s in (0, 0, 1))
    assert {k: v.shape for k, v in first.items()} == {k: v.shape for k, v in inherited.items()}
    for name, value in first.items():
        assert torch.equal(value, again[name])
        if name.endswith("running_mean"):
            assert value.eq(0).all()
        elif name.endswith("running_var"):
            assert value.eq(1).all()
        elif value.ndim > 1 or name == "linear.bias":
            assert not torch.equal(value, inherited[name])
            assert not torch.equal(value, other[name])


def test_new_weights_come_once_behind_the_last_of_several_cuts(
    digits_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths: list[int] = []
    real = Reinitialise.recover

    def spied(self: Reinitialise, model: nn.Module, context: Any, epochs: float) -> Any:
        widths.append(sum(p.numel() for p in model.parameters()))
        return real(self, model, context, epochs)

    monkeypatch.setattr(Reinitialise, "recover", spied)
    schedule = {"name": "iterative", "count": 3, "epochs_between": 0.1}
    prepared = prepare(scratch(schedule=schedule), digits_bench, 0)
    assert widths == [sum(p.numel() for p in prepared.compressed.model.parameters())]


def test_low_rank_factors_start_anew_by_their_own_rule(digits_bench: Bench) -> None:
    recipe = scratch(low_rank={"name": "svd", "rank_fraction": 0.5}, target={"flops_fraction": 0.35})
    compressed = prepare(recipe, digits_bench, 0).compressed
    assert compressed.factors
    for factor in compressed.factors:
        for part in compressed.model.get_submodule(factor.layer).children():
            weight = part.get_parameter("weight").detach()
            bound = (1 / weight[0].numel()) ** 0.5
            assert weight.abs().max() <= bound
            assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.3)


def test_it_cannot_run_on_its_own(network: Any, make_context: Any) -> None:
    with pytest.raises(BadRecipe, match="cannot run on its own"):
        Reinitialise().recover(network(), make_context(), 0.0)


def test_a_copy_of_a_model_without_a_spec_starts_anew_module_by_module(digits_bench: Bench) -> None:
    base = dataclasses.replace(digits_bench.base, spec=None)
    bench = dataclasses.replace(digits_bench, base=base)
    before = copy.deepcopy(bench.base.model.state_dict())
    made = prepare(scratch(), bench, 0).compressed.model.state_dict()
    assert all(torch.equal(v, before[k]) for k, v in bench.base.model.state_dict().items())
    assert made["bn1.running_mean"].eq(0).all()
    n_in = made["layer3.conv2.weight"].shape[1] * 9
    assert float(made["layer3.conv2.weight"].std()) == pytest.approx((1 / (3 * n_in)) ** 0.5, rel=0.05)


@pytest.mark.parametrize(("by", "epochs"), [("epochs", 2), ("compute", 4)])
def test_the_budget_of_a_model_at_half_the_flops(by: str, epochs: int, digits_bench: Bench) -> None:
    recipe = scratch(recovery=["reinitialise", {"name": "scratch", "by": by, "cap": 10, "lr": 0.05}], epochs=2)
    outcome = run_trial(recipe, digits_bench, 0)
    assert outcome.validation.flops_fraction <= 0.5
    assert outcome.cost.trained_samples == epochs * len(digits_bench.data.train)
    capped = Recipe.parse(recipe.plain() | {"target": {"flops_fraction": 0.2}, "recovery": [
        "reinitialise", {"name": "scratch", "by": by, "lr": 0.05}]})  # fmt: skip
    assert run_trial(capped, digits_bench, 0).cost.trained_samples == epochs * len(digits_bench.data.train)


def test_training_from_scratch_learns(digits_bench: Bench) -> None:
    recipe = scratch(recovery=["reinitialise", {"name": "scratch", "lr": 0.1, "batch_size": 64}], epochs=4)
    outcome = run_trial(recipe, digits_bench, 0)
    assert outcome.before_training.accuracy < 0.4
    assert outcome.validation.accuracy > 0.9


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"recovery": ["scratch"]}, "scratch trains new weights; put reinitialise before it"),
        ({"recovery": ["compensation", "reinitialise"]}, "reinitialise would throw away what compensation corrects"),
    ],
)
def test_recipes_that_contradict_themselves(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRecipe, match=message):
        scratch(**parts)


def test_the_presets_differ_in_the_budget_only() -> None:
    first, second = (presets.load(f"scratch_{arm}").plain() for arm in "eb")
    assert first["recovery"][1] != second["recovery"][1]
    assert {k for k in first if first[k] != second[k]} == {"recovery", "preset"}
    assert Scratch().by == "compute"
