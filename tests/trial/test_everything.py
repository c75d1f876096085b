"""Recipes of the space that offers every kind of choice, through a whole trial."""

from __future__ import annotations

from typing import Any

import pytest

from autoprune.recipe import Target
from autoprune.search.space import load_space
from autoprune.trial import Bench, run_trial


class Chosen:
    """Draws the least of every range, and of the choices those named, else the first."""

    def __init__(self, **choices: str) -> None:
        self._choices: dict[str, Any] = choices | {"depth.sr_init.allow_first": True}

    def suggest_float(self, name: str, low: float, high: float, **_: Any) -> float:
        return low

    def suggest_int(self, name: str, low: int, high: int, **_: Any) -> int:
        return low

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self._choices.get(name, choices[0])


COMBINED = [
    {"regulariser": "spectral_radius", "criterion": "flatness", "allocation": "global", "low_rank": "svd"},
    {"regulariser": "network_slimming", "criterion": "bn_scale", "schedule": "iterative", "sparsity": "rigl"},
    {"low_rank": "lrpet", "depth": "sr_init", "sparsity": "magnitude", "replacement": "haste"},
    {"low_rank": "tucker2", "regulariser": "greg_1", "sparsity": "snip", "replacement": "haste", "depth": "sr_init"},
]


@pytest.mark.parametrize("choices", COMBINED, ids=lambda choices: "+".join(choices.values()))
def test_kinds_of_choices_combine_and_the_target_is_met(choices: dict[str, str], digits_bench: Bench) -> None:
    space, structure = load_space("everything"), digits_bench.base.structure
    recipe = space.suggest(Chosen(**choices), structure)
    for kind, name in choices.items():
        assert getattr(recipe, kind).name == name
    recipe = recipe.model_copy(update={"target": Target(flops_fraction=0.5), "epochs": 0.1})
    outcome = run_trial(recipe, digits_bench, seed=0)
    found = outcome.validation
    assert 0.4 < found.flops_fraction <= 0.5
    assert bool(outcome.compressed.factors) == ("low_rank" in choices)
    assert bool(outcome.compressed.implants) == ("replacement" in choices)
    wanted = 0.2 if "sparsity" in choices else 0.0
    assert found.sparsity == pytest.approx(wanted, abs=0.01)
    assert (found.sparse_flops < found.flops) == ("sparsity" in choices)
