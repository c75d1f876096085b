"""Studies as records, written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autoprune.recipe import Recipe, Target
from autoprune.study.config import StudyConfig
from autoprune.study.records import RungRecord, StudyRecord, TrialRecord


def rung(number: int, accuracy: float, flops: float, promoted: bool = True, **more: float) -> RungRecord:
    metrics = {
        "accuracy": accuracy, "loss": 1 - accuracy, "count": 287.0, "flops": 1_527_424 * flops,
        "params": 77_754 * flops, "flops_fraction": flops, "params_fraction": flops, **more,
    }  # fmt: skip
    cost = {"seconds": 1.5, "trained_samples": 500.0 * number, "forward_samples": 600.0}
    amounts: dict[str, Any] = {"counts": {"conv1": int(16 * flops), "layer1.conv1": int(12 * flops)}}
    notes = ("group layer3 stays whole: no batch norm",) if number == 0 else ()
    return RungRecord(
        rung=number,
        metrics=metrics,
        cost=cost,
        promoted=promoted,
        amounts=amounts if number == 0 else {},
        notes=notes,
    )


def trial(number: int, accuracies: tuple[float, ...], flops: float, state: str = "done", **more: Any) -> TrialRecord:
    target = Target(flops_fraction=more.pop("target", 0.5))
    last = len(accuracies) - 1
    metrics = more.pop("metrics", {})
    fields: dict[str, Any] = {
        "baseline": None,
        "recipe": Recipe(target=target).plain(),
        "seed": number,
        "seconds": 4.0,
    } | more
    rungs = tuple(rung(i, a, flops, promoted=i < last, **metrics) for i, a in enumerate(accuracies))
    return TrialRecord(number=number, state=state, target=target, rungs=rungs, **fields)  # type: ignore[arg-type]


def study(trials: tuple[TrialRecord, ...], folder: Path = Path("runs/digits")) -> StudyRecord:
    config = StudyConfig.model_validate(
        {
            "name": "digits",
            "model": {"name": "digits_resnet"},
            "data": {"name": "digits"},
            "targets": [0.5, 0.25],
        }
    )
    base = {"accuracy": 0.98, "test_accuracy": 0.97, "flops": 1_527_424.0, "params": 77_754.0}
    return StudyRecord(config=config, folder=folder, trials=trials, base=base, seconds=75.0)


def example_trials() -> tuple[TrialRecord, ...]:
    return (
        trial(0, (0.5, 0.8, 0.90), 0.50, baseline="uniform_l1", test={"accuracy": 0.89}),
        trial(1, (0.3, 0.6, 0.80), 0.25, target=0.25, baseline="uniform_l1", test={"accuracy": 0.79}),
        trial(2, (0.6, 0.9, 0.95), 0.49, test={"accuracy": 0.94}),
        trial(3, (0.2,), 0.50, state="stopped"),
        trial(4, (0.5, 0.8, 0.88), 0.24, target=0.25, test={"accuracy": 0.86}),
        trial(5, (), 0.50, state="failed", error="the training loss became nan", error_kind="LossNotFinite"),
        trial(6, (0.4, 0.7), 0.25, target=0.25, state="running"),
        trial(7, (0.4, 0.7, 0.91), 0.35),
        trial(8, (), 0.25, state="duplicate"),
    )


@pytest.fixture
def trials() -> tuple[TrialRecord, ...]:
    return example_trials()


@pytest.fixture
def record(trials: tuple[TrialRecord, ...]) -> StudyRecord:
    return study(trials)
