"""Weights shaped by training before a cut, and single weights zeroed behind it."""

from __future__ import annotations

import copy
import dataclasses
import time

from torch import nn

from autoprune.errors import BadRecipe
from autoprune.masks import Hold, prunable
from autoprune.recipe import Recipe
from autoprune.regularisers import RegulariserContext
from autoprune.schedules import Step
from autoprune.seeds import derive_seed
from autoprune.sparsity import Sparsified, SparsityContext
from autoprune.trial.bench import Bench, Cost
from autoprune.trial.choosing import Chooser, Chosen
from autoprune.trial.recovering import train_on
from autoprune.trial.state import State


def regularised(
    recipe: Recipe, bench: Bench, state: State, chooser: Chooser, step: Step, seed: int, *, first: bool
) -> tuple[State, Chosen | None, Cost]:
    """Return the state with a shaped model, and what the cut has to keep if that was chosen on the way."""
    assert recipe.regulariser is not None
    began = time.perf_counter()
    model = copy.deepcopy(state.model) if state.model is bench.model else state.model
    chosen: list[Chosen] = []

    def choose(model: nn.Module) -> dict[str, list[int]]:
        chosen.append(chooser.ahead(dataclasses.replace(state, model=model), step, seed))
        return chosen[-1].keep

    context = RegulariserContext(
        structure=state.structure,
        choose=choose,
        data=bench.data,
        task=bench.task,
        seed=seed,
        device=bench.device,
        mixed_precision=bench.settings.mixed_precision,
        first=first,
    )
    shaped = recipe.regulariser.shape(model, context)
    cost = Cost(trained_samples=shaped.trained_samples, seconds=time.perf_counter() - began)
    return dataclasses.replace(state, model=model), chosen[-1] if shaped.as_chosen else None, cost


def sparsified(model: nn.Module, recipe: Recipe, bench: Bench, seed: int) -> tuple[Sparsified, Cost]:
    """Zero single weights, in place, as the recipe says."""
    method = recipe.sparsity
    if method is None:
        return Sparsified(masks={}), Cost()
    if not prunable(model):
        raise BadRecipe(f"{type(model).__name__} has no convolution or linear layer whose weights could become zero")
    began, total = time.perf_counter(), Cost()

    def train(model: nn.Module, epochs: float, hook: Hold, *purpose: str | int) -> None:
        nonlocal total
        if not any(r.trains for r in recipe.recovery):
            raise BadRecipe(
                f"sparsity method {method.name!r} trains the model, but the recipe has no recovery that says how; add "
                "finetune or distillation"
            )
        total += train_on(model, recipe, bench, derive_seed(seed, "sparsity", *purpose), epochs, hook)

    context = SparsityContext(
        data=bench.data, task=bench.task, seed=derive_seed(seed, "sparsity"), device=bench.device, train=train
    )
    found = method.sparsify(model, context)
    return found, Cost(
        trained_samples=total.trained_samples,
        forward_samples=total.forward_samples + found.forward_samples,
        seconds=time.perf_counter() - began,
    )
