from __future__ import annotations

from typing import Any

import pytest

from autoprune.errors import BadRecipe, UnknownName
from autoprune.recipe import Recipe, Target
from autoprune.specs import TrainSpec


def test_yaml_round_trip_keeps_every_value() -> None:
    text = """
    criterion: taylor_2019
    allocation: {name: per_group, keep_fraction: {'layer1.*': 0.4}}
    schedule: {name: iterative, count: 4}
    low_rank: {name: svd, rank_fraction: 0.7}
    depth: {name: sr_init, tau: 0.6}
    recovery: [bn_reestimation, {name: distillation, lr: 0.02}]
    target: {flops_fraction: 0.35}
    """
    recipe = Recipe.from_yaml(text)
    again = Recipe.from_yaml(recipe.to_yaml())
    assert again == recipe
    assert "tau: 0.6" in recipe.to_yaml()
    assert "epochs_between: 0.1" in recipe.to_yaml()  # defaults are spelled out
    assert again.allocation.config() == {"name": "per_group", "keep_fraction": {"layer1.*": 0.4}}


def test_default_recipe_is_uniform_l1() -> None:
    recipe = Recipe()
    assert (recipe.criterion.name if recipe.criterion else None, recipe.allocation.name) == ("l1_norm", "uniform")
    assert [r.name for r in recipe.recovery] == ["bn_reestimation", "finetune"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"critereon": "l1_norm"},
            r"recipe: critereon is no known key; did you mean 'criterion'\? Allowed here: criterion, normalisation",
        ),
        ({"target": {"flops": 0.5}}, "recipe: target.flops is no known key; .*llowed here: flops_fraction"),
        ({"target": {"flops_fraction": 1.5}}, "recipe: target.flops_fraction: .*less than or equal to 1, got 1.5"),
        ({"target": {"flops_fraction": None}}, "a target needs flops_fraction, params_fraction, latency_fraction or"),
        ({"normalisation": "big"}, "recipe: normalisation: .*'none', 'mean', .* got 'big'"),
        ({"criterion": None}, "nothing to do: criterion, low_rank, sparsity and depth are all null"),
        ({"depth": {"name": "sr_init", "share": 1.5}}, "SrInit.share must be from 0 to 1, got 1.5"),
        ({"recovery": ["finetune", "distillation"]}, "only one method may train, got finetune and distillation"),
        ({"epochs": "many"}, "recipe: epochs: .*got 'many'"),
        ({"schedule": {"name": "iterative", "count": 0}}, "Iterative.count must be from 1 to 100, got 0"),
    ],
)
def test_bad_recipes_say_where_and_what_is_allowed(data: dict[str, object], message: str) -> None:
    with pytest.raises(BadRecipe, match=message):
        Recipe.parse(data)


def test_unknown_method_in_a_recipe() -> None:
    with pytest.raises(UnknownName, match=r"recipe: no criteria method named 'l3_norm'. Did you mean 'l[12]_norm'?"):
        Recipe.parse({"criterion": "l3_norm"})


def test_broken_yaml_tells_the_line() -> None:
    with pytest.raises(BadRecipe, match=r"recipe is not valid YAML.*line 1"):
        Recipe.from_yaml("criterion: [l1_norm")


def test_yaml_cannot_run_code() -> None:
    with pytest.raises(BadRecipe, match="not valid YAML"):
        Recipe.from_yaml("criterion: !!python/object/apply:os.system ['true']")


def test_steps_of_a_schedule_go_in_equal_parts_of_cost() -> None:
    target = Target(flops_fraction=0.4, params_fraction=0.7)
    assert target.at(0.5) == Target(flops_fraction=0.7, params_fraction=0.85)
    assert target.at(1.0) == target


def test_a_training_that_repeats_the_base_models_takes_its_settings() -> None:
    base = TrainSpec(epochs=12, lr=0.3, batch_size=32, schedule="step", weight_decay=0.001, warmup_fraction=0.2)
    recipe = Recipe.parse({"recovery": ["reinitialise", {"name": "scratch", "by": "epochs"}], "epochs": 160})
    made = recipe.trained_like(base)
    expected = {"lr": 0.3, "batch_size": 32, "schedule": "step", "weight_decay": 0.001, "warmup_fraction": 0.2}
    assert made.recovery[1].config().items() >= (expected | {"by": "epochs"}).items()
    assert made.epochs == 12
    assert Recipe.parse(made.plain()) == made
    plain = Recipe.parse({})
    assert plain.trained_like(base) is plain


@pytest.mark.parametrize("own", [{"label_smoothing": 0.1}, {"schedule": "step", "milestones": [0.4]}])
def test_a_training_that_cannot_be_repeated_is_refused(own: dict[str, Any]) -> None:
    recipe = Recipe.parse({"recovery": ["reinitialise", "scratch"]})
    with pytest.raises(BadRecipe, match="label smoothing or milestones of its own"):
        recipe.trained_like(TrainSpec(**own))
