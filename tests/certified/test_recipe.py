"""The preset as a trial: it meets its target and says what it proved."""

from __future__ import annotations

import dataclasses

from autoprune import presets
from autoprune.recipe import Recipe
from autoprune.trial import Bench, finish, run_trial


def short() -> Recipe:
    """Return the preset with hardly any training."""
    plain = presets.load("certified").plain()
    plain["regulariser"] |= {"epochs": 0.2}
    return Recipe.parse(plain | {"epochs": 0.2, "target": {"flops_fraction": 0.5}})


def test_the_preset_meets_its_target_and_certifies_at_its_own_epsilon(digits_bench: Bench) -> None:
    recipe = short()
    bench = dataclasses.replace(
        digits_bench, settings=digits_bench.settings.model_copy(update={"certified_samples": 20})
    )
    outcome = run_trial(recipe, bench, seed=0)
    found = outcome.metrics
    assert 0.4 < found["flops_fraction"] <= 0.5
    assert (found["certified_epsilon"], found["certified_count"]) == (recipe.certified_at, 20)
    assert found["certified_accuracy"] <= found["attacked_accuracy"] <= found["certified_clean_accuracy"]
    assert outcome.cost.trained_samples >= 2 * round(0.2 * len(bench.data.train))


def test_the_epsilon_of_the_settings_goes_before_that_of_the_recipe(digits_bench: Bench) -> None:
    settings = digits_bench.settings.model_copy(update={"certified_samples": 4, "certified_epsilon": 0.002})
    bench = dataclasses.replace(digits_bench, settings=settings)
    assert finish(bench.model, short(), bench, 0).metrics["certified_epsilon"] == 0.002
    assert finish(bench.model, Recipe(), digits_bench, 0).metrics == {}
