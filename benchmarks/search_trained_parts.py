"""What each part of a search adds: the searches of the ablation, each without one part of autoprune."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

from autoprune import repair as repairing
from autoprune.search.baselines import named
from autoprune.search.space import read_space
from autoprune.trial import choosing

STARTS = ("fitted_ranks", "knapsack")
NO_REPAIR = "without rungs and repair"
_FITTED = "outputs"


def searches(
    rungs: Mapping[str, Any], all_trained: Mapping[str, Any], targets: Sequence[float]
) -> dict[str, dict[str, Any]]:
    """Return what each search changes of the study. all_trained: settings under which every trial is trained whole."""
    space = both_kinds()
    fixed = {"allocation": {"choose": ["uniform", "global"]}, "low_rank": {"choose": _same_ranks(space)}}
    uncorrected = {"low_rank": {"choose": _to_weights(space)}, "recovery": space["recovery"][1:]}
    finetuned = {"recovery": [*space["recovery"][:-1], {"name": "finetune", "lr": "search"}]}
    plain = [named(name).plain() for name in STARTS]
    return {
        "autoprune, ranks alone in the space": {**rungs, "search_space": "low_rank"},
        "without warm starts": {**rungs, "warm_start": []},
        "without rungs": {**all_trained, "warm_start": STARTS},
        NO_REPAIR: {**all_trained, "warm_start": STARTS},
        "without tolerance for noise": {**rungs, "rungs": {**rungs["rungs"], "noise": 0.0}},
        "without learned amounts": {**rungs, "search_space": {**space, **fixed}, "warm_start": ["fitted_ranks"]},
        "without closed-form correction": {
            **rungs,
            "search_space": {**space, **uncorrected},
            "warm_start": _at(targets, [_uncorrected(recipe) for recipe in plain]),
        },
        "without distillation": {
            **rungs,
            "search_space": {**space, **finetuned},
            "warm_start": _at(targets, [_finetuned(recipe) for recipe in plain]),
        },
    }


def both_kinds() -> dict[str, Any]:
    """Return the space `low_rank` without recipes that cut no channels."""
    space, _ = read_space("low_rank")
    return {**space, "criterion": {"choose": [one for one in space["criterion"]["choose"] if one is not None]}}


def _at(targets: Sequence[float], recipes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found = ({**recipe, "target": {"flops_fraction": target}} for recipe in recipes for target in sorted(targets))
    return list(found)


def _same_ranks(space: Mapping[str, Any]) -> list[Any]:
    """Return the choices of low rank with the same share of every layer, as no draw says otherwise."""
    return [
        None if one is None else {key: value for key, value in one.items() if key != "rank_fraction"}
        for one in space["low_rank"]["choose"]
    ]


def _to_weights(space: Mapping[str, Any]) -> list[Any]:
    """Return the choices of low rank, factors fitted to the weights and not to what layers give on data."""
    return [
        {**one, "reconstruct": "weights"} if one and "reconstruct" in one else one
        for one in space["low_rank"]["choose"]
    ]


def _uncorrected(recipe: Mapping[str, Any]) -> dict[str, Any]:
    low_rank = recipe["low_rank"]
    return {
        **recipe,
        "recovery": [one for one in recipe["recovery"] if one["name"] != "compensation"],
        "low_rank": low_rank and {**low_rank, "reconstruct": "weights"},
    }


def _finetuned(recipe: Mapping[str, Any]) -> dict[str, Any]:
    kept = [one for one in recipe["recovery"] if one["name"] != "distillation"]
    return {**recipe, "recovery": [*kept, "finetune"]}


@contextlib.contextmanager
def as_named(search: str) -> Iterator[None]:
    """Make trials run without repair while the search of that name does: for workers in this process."""
    if search != NO_REPAIR:
        yield
        return
    with mock.patch.object(choosing, "repair", _by_formula):
        yield


def _by_formula(structure: Any, budget: Any, **recipe: Any) -> Any:
    """Return amounts by the rule of thumb that FLOPs go with the square of the width, wherever they land."""
    strength = -0.5 * math.log2(budget.target.flops_fraction)
    free = repairing.Budget(flops=budget.flops, params=budget.params, target=budget.target)
    with (
        mock.patch.object(repairing._Plan, "meeting", return_value=strength),
        mock.patch.object(repairing, "_BISECTIONS", 0),
        mock.patch.object(repairing._Plan, "topped_up", lambda plan, met, missed: met),
    ):
        return repairing.repair(structure, free, **recipe)
