"""What a study runs next: recipes to begin with, then baselines, then what the sampler draws.

The smallest target comes first everywhere: a model that meets it meets the others, so that a study which is stopped
early has something for all of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autoprune.errors import AutopruneError, BadInput, NothingToDo, UnreachableTarget
from autoprune.recipe import Recipe, Target
from autoprune.search.asker import Asker
from autoprune.search.baselines import Baseline, build_baselines, named, suits
from autoprune.search.nodes import Items
from autoprune.search.space import Space
from autoprune.study.config import StudyConfig, target_label
from autoprune.study.records import TrialRecord

if TYPE_CHECKING:
    from optuna import Trial

_DROPPED_IN_A_ROW = 3


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the next trial is to be. recipe: what is given; without one the sampler draws."""

    target: Target
    baseline: Baseline | None = None
    warm_start: int | None = None
    recipe: Recipe | None = None


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A trial that is not recorded yet. recipe: plain data with its target; None with the error that drawing met."""

    trial: Trial
    plan: Plan
    recipe: Mapping[str, Any] | None = None
    error: AutopruneError | None = None


class Planner:
    """Drafts trials, and counts those that are recorded."""

    def __init__(self, config: StudyConfig, space: Space, items: Items, asker: Asker) -> None:
        """Raises BadInput for baselines or warm starts that do not suit the study."""
        self._targets = _smallest_first(config)
        # Optuna holds a dimension's choices to the order that they had at first
        self._labels = [target_label(target) for target in config.targets]
        self._space, self._items, self._asker = space, items, asker
        self._trials = config.budget.trials
        self._baselines = [(one, target) for one in build_baselines(config.baselines) for target in self._targets]
        self._warm = self._new(warm_starts(config, space))
        self._baselines_there: set[tuple[str, str]] = set()
        self._warm_there: set[int] = set()
        self._seen: set[str] = set()
        self._dropped_in_a_row = 0
        self.recorded = 0

    @property
    def baselines(self) -> int:
        """How many trials the baselines are."""
        return len(self._baselines)

    @property
    def baselines_missing(self) -> bool:
        """Whether some of them are still to come."""
        return bool(self._missing())

    def count(self, record: TrialRecord) -> None:
        """Take note of a recorded trial."""
        self.recorded += 1
        if record.baseline is not None:
            self._baselines_there.add((record.baseline, record.target_label))
        if record.warm_start is not None:
            self._warm_there.add(record.warm_start)
        if record.recipe is not None:
            self._seen.add(_key(record.recipe))

    def next(self) -> Draft:
        """Return the next trial.

        What the sampler drew before, and what cannot meet its target whatever the model, is drawn again; only so often.
        """
        plan = self._plan()
        while True:
            trial = self._asker.ask(self._fixed(plan))
            try:
                recipe = self._drawn(trial, plan)
                recipe.check_target()
            except AutopruneError as error:
                useless = isinstance(error, NothingToDo | UnreachableTarget)
                if plan.recipe is not None or not self._to_drop(useless):
                    return Draft(trial=trial, plan=plan, error=error)
            else:
                if plan.recipe is not None or not self._to_drop(_key(recipe.plain()) in self._seen):
                    return Draft(trial=trial, plan=plan, recipe=recipe.plain())
            self._asker.drop(trial)

    def _plan(self) -> Plan:
        missing = self._missing()
        if self.recorded + len(missing) < self._trials:
            for i, recipe in self._warm.items():
                if i not in self._warm_there:
                    return Plan(target=recipe.target, warm_start=i, recipe=recipe)
        for baseline, target in missing:
            return Plan(target=target, baseline=baseline, recipe=baseline.recipe)
        searched = self.recorded - len(self._baselines_there) - len(self._warm_there)
        return Plan(target=self._targets[searched % len(self._targets)])

    def _missing(self) -> list[tuple[Baseline, Target]]:
        there = self._baselines_there
        return [(one, target) for one, target in self._baselines if (one.name, target_label(target)) not in there]

    def _new(self, warm: Sequence[Recipe]) -> dict[int, Recipe]:
        """Return recipes by their places, without baselines, which may be what did best in an earlier study."""
        known = {_key(_at(one.recipe, target).plain()) for one, target in self._baselines}
        return {i: recipe for i, recipe in enumerate(warm) if _key(recipe.plain()) not in known}

    def _fixed(self, plan: Plan) -> dict[str, Any]:
        """Return the draws that the plan prescribes. With them a recipe is a point that the sampler learns from."""
        draws = None if plan.recipe is None else self._space.encode(plan.recipe, self._items)
        return {"target": target_label(plan.target)} | (draws or {})

    def _drawn(self, trial: Trial, plan: Plan) -> Recipe:
        trial.suggest_categorical("target", self._labels)
        if plan.recipe is None:
            recipe = self._space.suggest(trial, self._items)
        else:
            recipe = plan.recipe
            if self._space.encode(recipe, self._items) is not None:
                self._space.suggest(trial, self._items)
        return _at(recipe, plan.target)

    def _to_drop(self, useless: bool) -> bool:
        """Tell whether to draw again; not after some in a row, as the space may be used up, or hold nothing else."""
        dropped = useless and self._dropped_in_a_row < _DROPPED_IN_A_ROW
        self._dropped_in_a_row = self._dropped_in_a_row + 1 if dropped else 0
        return dropped


def warm_starts(config: StudyConfig, space: Space) -> list[Recipe]:
    """Return the recipes to begin with. Raises BadInput for a run folder, which `launch` reads, or another target."""
    if isinstance(config.warm_start, str):
        raise BadInput(f"warm_start: {config.warm_start!r} must be read into recipes first; autoprune.launch does that")
    # a table of outcomes holds what it was recorded for, and no losses of single cuts
    methods = () if config.executor.name == "replay" else space.methods()
    targets = _smallest_first(config)
    known = [target_label(target) for target in targets]
    recipes = list[Recipe]()
    for i, given in enumerate(config.warm_start):
        if isinstance(given, str):
            recipe = named(given)
            recipes += [_at(recipe, target) for target in targets if suits(recipe, target, methods)]
            continue
        recipe = Recipe.parse(given, f"warm_start[{i}]")
        if target_label(recipe.target) not in known:
            found = target_label(recipe.target)
            raise BadInput(f"warm_start[{i}] has the target {found}; the study's are {', '.join(known)}")
        recipes.append(recipe)
    return recipes


def _smallest_first(config: StudyConfig) -> list[Target]:
    return sorted(config.targets, key=lambda target: target.least)


def _at(recipe: Recipe, target: Target) -> Recipe:
    return recipe.model_copy(update={"target": target})


def _key(recipe: Mapping[str, Any]) -> str:
    return json.dumps(recipe, sort_keys=True)
