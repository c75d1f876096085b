"""Weights shaped by training before a cut, and single weights zeroed behind it."""

from __future__ import annotations

import copy
import dataclasses
import time
from dataclasses import dataclass, field

from torch import nn

from autoprune.errors import BadRecipe
from autoprune.masks import prunable
from autoprune.recipe import Recipe
from autoprune.regularisers import RegulariserContext
from autoprune.schedules import Step
from autoprune.seeds import derive_seed
from autoprune.sparsity import Sparsified, SparsityContext
from autoprune.training import StepHook
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
    began, train = time.perf_counter(), Trainer(recipe, bench, seed, "sparsity", method.name)
    context = SparsityContext(
        data=bench.data, task=bench.task, seed=derive_seed(seed, "sparsity"), device=bench.device, train=train
    )
    found = method.sparsify(model, context)
    return found, Cost(
        trained_samples=train.cost.trained_samples,
        forward_samples=train.cost.forward_samples + found.forward_samples,
        seconds=time.perf_counter() - began,
    )


@dataclass
class Trainer:
    """Trains by the recipe's recovery for a method of a room, and counts what that costs."""

    recipe: Recipe
    bench: Bench
    seed: int
    room: str
    method: str
    cost: Cost = field(default_factory=Cost)

    def __call__(self, model: nn.Module, epochs: float, hook: StepHook, *purpose: str | int) -> None:
        """Raises BadRecipe when the recipe has no recovery that trains."""
        if not any(r.trains for r in self.recipe.recovery):
            raise BadRecipe(
                f"{self.room} method {self.method!r} trains the model, but the recipe has no recovery that says how; "
                "add finetune or distillation"
            )
        seed = derive_seed(self.seed, self.room, *purpose)
        self.cost += train_on(model, self.recipe, self.bench, seed, epochs, hook)
