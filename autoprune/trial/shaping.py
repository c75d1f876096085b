"""Weights shaped by training before a cut, and single weights zeroed behind it."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Mapping
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


@dataclass(frozen=True, kw_only=True)
class Regularised:
    """A shaped model, and what the cut has to keep if that was chosen on the way."""

    state: State
    chosen: Chosen | None
    notes: tuple[str, ...]
    cost: Cost


def regularised(
    recipe: Recipe, bench: Bench, state: State, chooser: Chooser, step: Step, seed: int, *, before: float
) -> Regularised:
    """Shape the model for the cut of a step. before: the progress of the schedule's step before, 0 at the first."""
    assert recipe.regulariser is not None
    began = time.perf_counter()
    model = copy.deepcopy(state.model) if state.model is bench.model else state.model
    ahead = _Ahead(state, chooser, step, seed, before)
    context = RegulariserContext(
        structure=state.structure,
        choose=ahead,
        data=bench.data,
        task=bench.task,
        seed=seed,
        device=bench.device,
        mixed_precision=bench.settings.mixed_precision,
        first=before == 0,
    )
    shaped = recipe.regulariser.shape(model, context)
    cost = Cost(
        trained_samples=shaped.trained_samples,
        forward_samples=shaped.forward_samples,
        seconds=time.perf_counter() - began,
    )
    return Regularised(
        state=dataclasses.replace(state, model=model),
        chosen=ahead.chosen if shaped.as_chosen else None,
        notes=shaped.notes,
        cost=cost,
    )


@dataclass
class _Ahead:
    """Chooses units of a model in training, and remembers what was chosen last."""

    state: State
    chooser: Chooser
    step: Step
    seed: int
    before: float
    chosen: Chosen | None = None

    def __call__(
        self, model: nn.Module, alive: Mapping[str, list[int]] | None = None, progress: float = 1.0
    ) -> Mapping[str, list[int]]:
        now = dataclasses.replace(self.state, model=model)
        spent = self.chosen.amounts.strength if alive and self.chosen is not None else 0.0
        part = self.before + progress * (self.step.progress - self.before)
        amounts, keep, implanted = self.chooser.ahead(
            now.cut(alive) if alive else now, dataclasses.replace(self.step, progress=part), self.seed, spent
        )
        if alive:
            # by the numbers that the units have in the structure before the training
            keep = {name: [alive[name][i] for i in kept] if name in alive else kept for name, kept in keep.items()}
        self.chosen = Chosen(dataclasses.replace(amounts, strength=amounts.strength + spent), keep, implanted)
        return keep


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
