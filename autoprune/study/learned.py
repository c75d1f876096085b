"""What an earlier study teaches a later one, or says about a target that it never had."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autoprune.errors import BadInput
from autoprune.recipe import Target
from autoprune.search.surrogate import Fit, Surrogate
from autoprune.study.records import StudyRecord, TrialRecord

PER_TARGET = 2
"""Recipes that a warm start takes over for each target."""


def best_recipes(record: StudyRecord, targets: Sequence[Target], per_target: int = PER_TARGET) -> list[dict[str, Any]]:
    """Return, for every target, the recipes that did best at the nearest target of a study, repaired to this one.

    The most accurate finished trials of the nearest target, each recipe once. Raises BadInput when none has finished.
    """
    done = [t for t in record.done() if t.recipe is not None]
    if not done:
        raise BadInput(f"{record.folder} has no finished trial to start from")
    found: list[dict[str, Any]] = []
    for target in targets:
        nearest = min(_distance(t.target, target) for t in done)
        there = [t for t in done if _distance(t.target, target) <= nearest + 1e-9]
        recipes = [_aimed(t, target) for t in sorted(there, key=lambda t: (-t.value("accuracy"), t.number))]
        found += _distinct(recipes)[:per_target]
    return found


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A recipe for a target that was never searched. error: root mean square, where predictions were like this one.

    source: the trial that the recipe is from. fit: of all held-out trials.
    """

    recipe: Mapping[str, Any]
    accuracy: float
    error: float
    source: int
    fit: Fit


class Oracle:
    """Predicts the top-rung accuracy of recipes, at any target, from a study's finished trials.

    Two forests: over recipes alone, and over recipes with what rung 0 shows of them, the accuracy before any training
    and the share of each group that stays.
    """

    def __init__(self, record: StudyRecord, sizes: Mapping[str, int]) -> None:
        """Fit. sizes: units of every group. Raises BadInput for a study with too few finished trials."""
        self._done = [t for t in record.done() if t.recipe is not None]
        self._sizes = sizes
        recipes = [t.recipe or {} for t in self._done]
        top_N1 = np.array([[t.value("accuracy")] for t in self._done]).reshape(-1, 1)
        self.by_recipe = Surrogate(recipes, top_N1)
        self.by_rung = Surrogate(recipes, top_N1, more=[self._seen(t) for t in self._done])

    def propose(self, target: Target) -> Proposal:
        """Return the recipe, of all that finished, with the best predicted accuracy at a target."""
        aimed = [(_aimed(t, target), t) for t in self._done]
        predicted_N = self.by_recipe.predict([recipe for recipe, _ in aimed])[:, 0]
        best = int(np.argmax(predicted_N))
        accuracy = float(predicted_N[best])
        return Proposal(
            recipe=aimed[best][0],
            accuracy=accuracy,
            error=self.by_recipe.error(0, accuracy),
            source=aimed[best][1].number,
            fit=self.by_recipe.fit(0),
        )

    def after_rung_zero(
        self, recipe: Mapping[str, Any], accuracy: float, counts: Mapping[str, int]
    ) -> tuple[float, float]:
        """Return the predicted top-rung accuracy and its error, now that rung 0 has been measured."""
        seen = _rung_zero(accuracy, counts, self._sizes)
        predicted = float(self.by_rung.predict([recipe], [seen])[0, 0])
        return predicted, self.by_rung.error(0, predicted)

    def _seen(self, trial: TrialRecord) -> dict[str, float]:
        first = trial.rungs[0]
        return _rung_zero(first.metrics["accuracy"], first.amounts.get("counts", {}), self._sizes)


def _rung_zero(accuracy: float, counts: Mapping[str, int], sizes: Mapping[str, int]) -> dict[str, float]:
    kept = {f"kept {name}": count / sizes[name] for name, count in counts.items() if name in sizes}
    return {"accuracy at rung 0": accuracy, **kept}


def _aimed(trial: TrialRecord, target: Target) -> dict[str, Any]:
    return {**(trial.recipe or {}), "target": target.model_dump(mode="json")}


def _distance(a: Target, b: Target) -> float:
    """Return how far two targets are apart; those that pin other costs are farther than any others."""
    pairs = [(mine, yours) for (_, mine), (_, yours) in zip(a, b, strict=True)]
    return sum(1.0 if x is None or y is None else abs(x - y) for x, y in pairs if (x, y) != (None, None))


def _distinct(recipes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({json.dumps(recipe, sort_keys=True): recipe for recipe in recipes}.values())
