import warnings

import optuna
import pytest

from autoprune.errors import UnknownName
from autoprune.search.samplers import build_sampler
from autoprune.search.tpe import RememberingTPE

NAMES = ["tpe", "nsga2", "gp", "random"]


def draw(name, finished, count=12, seed=3):
    study = optuna.create_study(
        directions=["maximize", "minimize"],
        sampler=build_sampler(name, seed=seed, finished=finished, budget=20),
    )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    drawn = []
    for _ in range(count):
        trial = study.ask()
        kind = trial.suggest_categorical("kind", ["a", "b"])
        x = trial.suggest_float("x", 0, 1)
        y = trial.suggest_float(f"{kind}.y", 0, 1)
        drawn.append((kind, x, y))
        study.tell(trial, [x, y])
    return drawn


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_draws(name):
    assert draw(name, finished=0) == draw(name, finished=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_study_draws_anew(name):
    assert draw(name, finished=0, count=2) != draw(name, finished=5, count=2)


def test_unknown_sampler_names_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'tpe'"):
        build_sampler("tpee", seed=0, finished=0, budget=1)


def test_remembering_tpe_draws_what_optunas_draws():
    options = {"seed": 1, "n_startup_trials": 4, "multivariate": True, "group": True, "constant_liar": True}

    def drawn(sampler):
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        found, waiting = [], []
        for i in range(30):
            trial = study.ask()
            kind = trial.suggest_categorical("kind", ["a", "b"])
            values = [trial.suggest_float("x", 0, 1), trial.suggest_int(f"{kind}.n", 1, 9)]
            found.append((kind, *values))
            # two are always running, one in four is stopped
            waiting.append((trial, values))
            if len(waiting) > 2:
                told, result = waiting.pop(0)
                study.tell(told, **({"state": optuna.trial.TrialState.PRUNED} if i % 4 == 0 else {"values": result}))
        return found

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert drawn(RememberingTPE(**options)) == drawn(optuna.samplers.TPESampler(**options))


def test_tpe_leaves_random_search_early_in_small_budgets():
    assert build_sampler("tpe", seed=0, finished=0, budget=10)._n_startup_trials == 4
    assert build_sampler("tpe", seed=0, finished=0, budget=1000)._n_startup_trials == 10
    assert build_sampler("tpe", seed=0, finished=0, budget=10, startup=7)._n_startup_trials == 7
