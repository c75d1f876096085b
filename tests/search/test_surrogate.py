from __future__ import annotations

import numpy as np
import pytest

from autoprune.errors import BadInput
from autoprune.search.surrogate import Encoder, Surrogate, flat


def recipe(lr, criterion="l1_norm", **more):
    return {"criterion": {"name": criterion}, "recovery": [{"name": "finetune", "lr": lr}], **more}


def worth(lr, criterion):
    return 0.9 - abs(np.log10(lr) + 1.5) * 0.2 - (0.1 if criterion == "random" else 0.0)


@pytest.fixture(scope="module")
def known():
    draws = np.random.default_rng(0)
    recipes, values = [], []
    for _ in range(120):
        lr, criterion = 10 ** draws.uniform(-3, -0.5), str(draws.choice(["l1_norm", "random"]))
        recipes.append(recipe(lr, criterion))
        values.append([worth(lr, criterion), 1000.0 * lr])
    return recipes, np.array(values)


def test_leaves_are_named_by_method_not_position():
    one = {"recovery": [{"name": "bn", "n": 5}, {"name": "finetune", "lr": 0.1}]}
    assert flat(one) == {
        "recovery.bn.name": "bn",
        "recovery.bn.n": 5,
        "recovery.finetune.name": "finetune",
        "recovery.finetune.lr": 0.1,
    }


def test_numbers_have_a_column_and_other_values_one_each():
    encoder = Encoder([recipe(0.1), recipe(0.2, "random", low_rank=None), {"criterion": {"name": "random"}}])
    rows = encoder.rows([recipe(0.3, "random", low_rank=None), {"criterion": {"name": "l1_norm"}}])
    # lr, then l1_norm, random, low_rank none, finetune
    assert rows.tolist() == [[0.3, 0, 1, 1, 1], [-1, 1, 0, 0, 0]]


def test_a_number_here_and_a_word_there():
    encoder = Encoder([{"keep": 0.5}, {"keep": "all"}, {"keep": True}])
    assert encoder.rows([{"keep": 0.25}]).tolist() == [[0.25, 0, 0]]
    assert sorted(encoder.rows([{"keep": True}])[0].tolist()) == [-1, 0, 1]


def test_methods_that_were_never_seen_are_named():
    encoder = Encoder([recipe(0.1)])
    assert encoder.unseen(recipe(0.7)) == []
    assert encoder.unseen(recipe(0.1, "thinet")) == ["criterion thinet"]


def test_held_out_recipes_are_predicted(known):
    surrogate = Surrogate(*known)
    fit = surrogate.fit(0)
    assert fit.count == 120
    assert fit.rmse < 0.25 * np.std(known[1][:, 0])
    assert fit.median_error <= fit.rmse
    assert fit.rank_correlation > 0.95
    (better, worse, other) = surrogate.predict([recipe(0.03), recipe(0.002), recipe(0.03, "random")])
    assert better[0] == pytest.approx(worth(0.03, "l1_norm"), abs=0.03)
    assert worse[0] < better[0]
    assert other[0] < better[0]


def test_the_stated_error_is_that_of_similar_predictions(known):
    recipes, values = known
    noisy = values.copy()
    far = np.array([one["criterion"]["name"] == "random" for one in recipes])
    noisy[far, 0] += np.random.default_rng(1).normal(-1.0, 0.2, far.sum())
    surrogate = Surrogate(recipes, noisy)
    assert surrogate.error(0, -0.3) > 2 * surrogate.error(0, 0.8)


def test_further_numbers_help(known):
    recipes, values = known
    hidden = np.random.default_rng(2).normal(0, 0.1, len(recipes))
    with_luck = values[:, :1] + hidden[:, None]
    without = Surrogate(recipes, with_luck)
    seen = Surrogate(recipes, with_luck, more=[{"rung_0": float(v)} for v in with_luck[:, 0]])
    assert seen.fit(0).rmse < 0.5 * without.fit(0).rmse


def test_same_seed_same_prediction(known):
    first, second = (Surrogate(*known, seed=3).predict([recipe(0.01)]) for _ in range(2))
    assert first.tolist() == second.tolist()


def test_values_that_never_change_are_predicted_exactly(known):
    recipes, _ = known
    assert Surrogate(recipes, np.full((len(recipes), 1), 0.25)).predict(recipes[:1])[0, 0] == 0.25


def test_too_few_recipes_are_refused(known):
    recipes, values = known
    with pytest.raises(BadInput, match="19 measured recipes are too few"):
        Surrogate(recipes[:19], values[:19])
