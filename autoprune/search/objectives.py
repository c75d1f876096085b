"""What a study optimises: names, directions, and the values of a finished trial."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from autoprune.errors import Failure, LossNotFinite

Direction = Literal["maximize", "minimize"]

METRIC_OF: Mapping[str, str] = {
    "accuracy": "accuracy",
    "flops": "flops_fraction",
    "sparse_flops": "sparse_flops_fraction",
    "dynamic_flops": "dynamic_flops_fraction",
    "params": "params_fraction",
    "latency": "latency_ms",
    "certified_error": "certified_error",
    "size": "deployed_bytes",
    "memory": "deployed_activation_bytes",
    "energy": "deployed_energy_uj",
}
"""Objective to the metric that holds its value."""

OF_DEPLOYED = ("size", "memory", "energy")
"""Objectives of the artefact that is deployed; with one of them, accuracy is that artefact's too."""
COSTS = ("flops", "sparse_flops", "dynamic_flops", "params", "latency", "certified_error", *OF_DEPLOYED)
_OF_FINISHED = frozenset({"certified_error", *OF_DEPLOYED})


def need_finished(objectives: Sequence[str]) -> bool:
    """Tell whether an objective is measured on finished models only, unless every rung is asked for it."""
    return not _OF_FINISHED.isdisjoint(objectives)


def of_deployed(objectives: Sequence[str]) -> bool:
    """Tell whether trials are judged by what is deployed of them: the int8 file of a recipe that quantises."""
    return not set(OF_DEPLOYED).isdisjoint(objectives)


def directions(objectives: Sequence[str]) -> list[Direction]:
    """Return which way each objective is better.

    >>> directions(["accuracy", "flops"])
    ['maximize', 'minimize']
    """
    return ["maximize" if name == "accuracy" else "minimize" for name in objectives]


def values(objectives: Sequence[str], metrics: Mapping[str, float]) -> list[float]:
    """Return the objectives' values, finite. Raises LossNotFinite or Failure for one that is not there."""
    found = []
    for name in objectives:
        metric = METRIC_OF[name]
        if metric not in metrics:
            raise Failure(f"objective {name!r} needs the metric {metric!r}; measured were {', '.join(metrics)}")
        if not math.isfinite(metrics[metric]):
            raise LossNotFinite(f"{metric} is {metrics[metric]}, so that the trial has no value to compare")
        found.append(float(metrics[metric]))
    return found
