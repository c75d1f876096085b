"""Recipes that are known by name: baselines, which the search has to beat, and warm starts, where it begins."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoprune.errors import BadInput, unknown_name
from autoprune.recipe import Recipe, Target

_NAMED: Mapping[str, Mapping[str, Any]] = {
    # Li et al. 2017 as it is usually compared: the same share of every group, by L1 norm
    "uniform_l1": {"criterion": "l1_norm", "normalisation": "mean", "allocation": "uniform"},
    # Molchanov et al. 2019: one global ranking by first-order Taylor importance, not normalised
    "global_taylor": {"criterion": "taylor_2019", "normalisation": "none", "allocation": "global"},
    # widths from losses measured group by group, cut models corrected in closed form before that; measured once and on
    # few samples, which on ResNet-20 costs 2 to 4 points before training and saves nine tenths of the measuring
    "knapsack": {
        "criterion": "compensation_rank",
        "normalisation": "none",
        "allocation": {"name": "knapsack", "samples": 128, "rounds": 1},
        "recovery": ["compensation", "bn_reestimation", "distillation"],
    },
    # all channels stay; every layer keeps the same share of its energy, fitted to what it gave before
    "fitted_ranks": {
        "criterion": None,
        "low_rank": {"name": "svd", "reconstruct": "outputs", "ranks": "energy"},
        "recovery": ["bn_reestimation", "distillation"],
    },
}


# what makes a model smaller or cheaper
_MADE_BY = {"criteria", "lowrank", "depth", "replacement", "sparsity", "quantisation"}


@dataclass(frozen=True)
class Baseline:
    """A recipe with the name that reports show it by."""

    name: str
    recipe: Recipe


def names() -> tuple[str, ...]:
    """Return the names of the baselines that ship."""
    return tuple(_NAMED)


def named(name: str) -> Recipe:
    """Return a recipe that ships, without a target of its own. Raises UnknownName."""
    if name not in _NAMED:
        raise unknown_name("warm start", name, _NAMED)
    return Recipe.parse(_NAMED[name])


def suits(recipe: Recipe, target: Target, methods: Collection[tuple[str, str]]) -> bool:
    """Tell whether a warm start may be tried at a target beside (room, name) of the methods that a study searches over.

    Models with low-rank layers are no surprise only to those who search over ranks; layers of another kind meet no
    target of latency.
    """
    searched = {room for room, _ in methods}
    used = {method.room for method in recipe.methods} & _MADE_BY
    return used <= searched and not (recipe.low_rank is not None and target.latency_fraction is not None)


def build_baselines(given: Sequence[str | Mapping[str, Any]]) -> tuple[Baseline, ...]:
    """Return baselines from names, paths of recipe files, and recipes as plain data (whose `preset` is their name).

    Raises UnknownName, BadRecipe or BadInput.
    """
    made = [_build(one, f"baselines[{i}]") for i, one in enumerate(given)]
    taken = [b.name for b in made]
    for name in taken:
        if taken.count(name) > 1:
            raise BadInput(f"baselines: {name!r} is there twice; give recipes different `preset` names")
    return tuple(made)


def _build(given: str | Mapping[str, Any], where: str) -> Baseline:
    if isinstance(given, Mapping):
        recipe = Recipe.parse(given, where)
        return Baseline(recipe.preset or where, recipe)
    if given in _NAMED:
        return Baseline(given, named(given))
    path = Path(given).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        raise unknown_name("baseline", given, _NAMED)
    if not path.is_file():
        raise BadInput(f"{where}: recipe file {given} does not exist")
    recipe = Recipe.from_yaml(path.read_text(encoding="utf-8"), given)
    return Baseline(recipe.preset or path.stem, recipe)
