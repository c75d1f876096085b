"""What is measured of a finished model besides accuracy and cost: its quantised file, and what can be proven of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from autoprune.certified.verify import certify
from autoprune.cost import latencies_ms
from autoprune.deployment.quantised import Quantised, measured_on, quantise
from autoprune.recipe import Recipe
from autoprune.seeds import derive_seed
from autoprune.trial.bench import Bench, Cost


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The quantised file, where the recipe asks for one, and metrics on the validation split.

    metrics: int8_accuracy, int8_loss, int8_bytes, float_bytes of the file; certified_accuracy, certified_error,
    attacked_accuracy, certified_clean_accuracy, certified_epsilon, certified_count where an epsilon is given;
    latency_ms and latency_fraction, of the base model's, where the target is one of latency.
    """

    quantised: Quantised | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)

    def __add__(self, other: Finished) -> Finished:
        return Finished(
            quantised=self.quantised or other.quantised,
            metrics={**self.metrics, **other.metrics},
            cost=self.cost + other.cost,
        )


def finish(model: nn.Module, recipe: Recipe, bench: Bench, seed: int, samples: int | None = None) -> Finished:
    """Measure what a recipe, or the bench's settings, ask for besides accuracy and cost.

    samples: of the validation split for the quantised file, None is all. The same seed gives the same file.
    Raises MissingDependency, Failure (NotApplicable for a network that cannot be certified), CheckFailed.
    """
    return (
        _deployed(model, recipe, bench, seed, samples) + _certified(model, recipe, bench) + _timed(model, recipe, bench)
    )


def _timed(model: nn.Module, recipe: Recipe, bench: Bench) -> Finished:
    """Time the model and the base model in turns where a share of the latter's time was the target."""
    if recipe.target.latency_fraction is None:
        return Finished()
    began = time.perf_counter()
    own, base = latencies_ms((model, bench.model), bench.data.train.one_sample(bench.device))
    return Finished(metrics={"latency_ms": own, "latency_fraction": own / base}, cost=_spent(0, began))


def quantised(model: nn.Module, recipe: Recipe, bench: Bench, seed: int) -> Quantised | None:
    """Return a trial's quantised file, the same for the same model and seed; None where the recipe asks for none."""
    if recipe.quantisation is None:
        return None
    return quantise(model, recipe.quantisation, bench.data, derive_seed(seed, "quantise"))


def _deployed(model: nn.Module, recipe: Recipe, bench: Bench, seed: int, samples: int | None) -> Finished:
    began = time.perf_counter()
    made = quantised(model, recipe, bench, seed)
    if made is None:
        return Finished()
    found = measured_on(made, bench.data.validation, bench.task, bench.settings.eval_batch_size, samples)
    count = made.calibration_samples + int(found.pop("int8_count"))
    return Finished(quantised=made, metrics=found, cost=_spent(count, began))


def certified(model: nn.Module, bench: Bench, epsilon: float) -> Finished:
    """Certify a model at an epsilon, on as many samples as the settings say. Raises NotApplicable, CheckFailed."""
    began = time.perf_counter()
    samples = bench.settings.certified_samples
    found = certify(model, bench.data.validation, bench.data.pixels, epsilon, samples=samples)
    metrics = {
        "certified_accuracy": found.certified,
        "certified_error": 1 - found.certified,
        "attacked_accuracy": found.attacked,
        "certified_clean_accuracy": found.clean,
        "certified_epsilon": found.epsilon,
        "certified_count": float(found.count),
    }
    return Finished(metrics=metrics, cost=_spent(found.count, began))


def _certified(model: nn.Module, recipe: Recipe, bench: Bench) -> Finished:
    given = bench.settings.certified_epsilon
    epsilon = recipe.certified_at if given is None else given
    return Finished() if epsilon is None else certified(model, bench, epsilon)


def _spent(samples: int, began: float) -> Cost:
    seconds = time.perf_counter() - began
    return Cost(forward_samples=samples, seconds=seconds, forward_seconds=seconds)
