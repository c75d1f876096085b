from __future__ import annotations

import numpy as np
import pytest

from autoprune.errors import BadInput
from autoprune.recipe import Recipe, Target
from autoprune.study.learned import Oracle, best_recipes
from autoprune.study.records import RungRecord, StudyRecord, TrialRecord


def trial(number, accuracy, target, lr=0.03, state="done", first=0.5, counts=None):
    recipe = Recipe.parse({"target": {"flops_fraction": target}, "recovery": [{"name": "finetune", "lr": lr}]})
    rungs = tuple(
        RungRecord(
            rung=i,
            metrics={"accuracy": a, "flops_fraction": target},
            cost={},
            promoted=i == 0,
            amounts={"counts": counts or {"stem": 4}} if i == 0 else {},
        )
        for i, a in enumerate((first, accuracy))
    )
    return TrialRecord(
        number=number, state=state, target=recipe.target, baseline=None, recipe=recipe.plain(), seed=1, rungs=rungs
    )


def record_of(trials, make_config, tmp_path):
    return StudyRecord(config=make_config(), folder=tmp_path, trials=tuple(trials), base={})


def lrs(recipes):
    return [(recipe["target"]["flops_fraction"], recipe["recovery"][0]["lr"]) for recipe in recipes]


def test_each_target_takes_the_best_of_the_nearest_one(make_config, tmp_path):
    record = record_of(
        [
            trial(0, 0.90, 0.5, lr=0.01),
            trial(1, 0.95, 0.5, lr=0.02),
            trial(2, 0.95, 0.5, lr=0.02),
            trial(3, 0.99, 0.5, lr=0.05, state="stopped"),
            trial(4, 0.80, 0.25, lr=0.04),
        ],
        make_config,
        tmp_path,
    )
    found = best_recipes(record, [Target(flops_fraction=0.45), Target(flops_fraction=0.2)])
    assert lrs(found) == [(0.45, 0.02), (0.45, 0.01), (0.2, 0.04)]
    assert lrs(best_recipes(record, [Target(flops_fraction=0.45)], per_target=1)) == [(0.45, 0.02)]


def test_a_target_of_another_cost_is_the_farthest(make_config, tmp_path):
    record = record_of([trial(0, 0.9, 0.5, lr=0.01), trial(1, 0.8, 0.5, lr=0.02)], make_config, tmp_path)
    found = best_recipes(record, [Target(flops_fraction=None, params_fraction=0.5)], per_target=1)
    assert found[0]["target"] == {"flops_fraction": None, "params_fraction": 0.5, "latency_fraction": None}


def test_a_study_without_a_finished_trial_starts_nothing(make_config, tmp_path):
    with pytest.raises(BadInput, match="no finished trial"):
        best_recipes(record_of([trial(0, 0.9, 0.5, state="stopped")], make_config, tmp_path), [Target()])


def worth(lr, target):
    return 0.95 - 0.2 * abs(np.log10(lr / 0.03)) - 0.3 * (1 - target)


@pytest.fixture
def many(make_config, tmp_path):
    draws = np.random.default_rng(0)
    trials = []
    for number in range(80):
        lr, target = float(10 ** draws.uniform(-2.3, -1)), float(draws.choice([0.2, 0.35, 0.5, 0.7]))
        kept = int(draws.integers(1, 9))
        accuracy = worth(lr, target) - 0.02 * kept
        trials.append(trial(number, accuracy, target, lr, first=accuracy - 0.1, counts={"stem": kept}))
    return record_of(trials, make_config, tmp_path)


def test_a_proposal_is_the_best_recipe_at_a_new_target(many):
    found = Oracle(many, {"stem": 8}).propose(Target(flops_fraction=0.42))
    assert found.recipe["target"]["flops_fraction"] == 0.42
    lr = found.recipe["recovery"][0]["lr"]
    assert 0.015 < lr < 0.06, "near the best learning rate"
    assert many.trials[found.source].recipe["recovery"] == found.recipe["recovery"]
    assert 0 < found.error < 0.1
    assert found.fit.count == 80
    assert found.accuracy == pytest.approx(worth(0.03, 0.42) - 0.07, abs=0.1)


def test_rung_zero_sharpens_the_prediction(many):
    oracle = Oracle(many, {"stem": 8})
    assert oracle.by_rung.fit(0).rmse < oracle.by_recipe.fit(0).rmse
    recipe = many.trials[0].recipe
    good, error = oracle.after_rung_zero(recipe, 0.75, {"stem": 1})
    bad, _ = oracle.after_rung_zero(recipe, 0.35, {"stem": 8})
    assert good > bad
    assert 0 < error < 0.1


def test_too_few_finished_trials_are_refused(make_config, tmp_path):
    with pytest.raises(BadInput, match="1 measured recipes are too few"):
        Oracle(record_of([trial(0, 0.9, 0.5)], make_config, tmp_path), {})
