"""What a recipe's model is as the file that is deployed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from autoprune.deployment.quantised import Quantised, measured_on, quantise
from autoprune.recipe import Recipe
from autoprune.seeds import derive_seed
from autoprune.trial.bench import Bench, Cost


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """The quantised file, where the recipe asks for one, with its metrics on the validation split."""

    quantised: Quantised | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)


def deploy(model: nn.Module, recipe: Recipe, bench: Bench, seed: int, samples: int | None = None) -> Deployed:
    """Quantise a copy of a trial's model as the recipe says, and measure the file as `measure` measures the model.

    The same seed gives the same file. Raises MissingDependency, Failure, CheckFailed.
    """
    if recipe.quantisation is None:
        return Deployed()
    began = time.perf_counter()
    made = quantise(model, recipe.quantisation, bench.data, derive_seed(seed, "quantise"))
    found = measured_on(made, bench.data.validation, bench.task, bench.settings.eval_batch_size, samples)
    seconds = time.perf_counter() - began
    count = made.calibration_samples + int(found.pop("int8_count"))
    return Deployed(
        quantised=made, metrics=found, cost=Cost(forward_samples=count, seconds=seconds, forward_seconds=seconds)
    )
