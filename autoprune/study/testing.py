"""A worker that needs no model: what a trial would find is a function of its recipe and seed.

Tests of executors, samplers and stoppers use it, here and in packages outside; a study runs in milliseconds a trial.
"""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoprune.errors import BadInput, LossNotFinite, OutOfMemory, TrialFailed
from autoprune.files import append_line
from autoprune.recipe import Recipe
from autoprune.seeds import derive_seed
from autoprune.study.jobs import Job, JobResult


@dataclass(frozen=True)
class FakeGroup:
    """A group as far as a search space looks at it."""

    name: str


@dataclass(frozen=True)
class FakeStructure:
    """A structure as far as a search space looks at it."""

    groups: tuple[FakeGroup, ...]
    layers: tuple[object, ...] = ()

    @property
    def stages(self) -> dict[str, str]:
        """One stage for all groups."""
        return {group.name: "1" for group in self.groups}


def fake_structure(names: Sequence[str] = ("stem", "block1", "block2")) -> FakeStructure:
    """Return a structure of these groups and no layers."""
    return FakeStructure(tuple(FakeGroup(name) for name in names))


@dataclass(frozen=True, kw_only=True)
class FakeWorker:
    """Answers jobs at once, the same for the same recipe, seed and rung; its own factory by `replace` or pickling.

    fail: trial to what goes wrong at its rung 0: `loss`, `memory`, `error`, `killed`; `killed_once` and `hangs_once`
    go wrong the first time only and need `folder` to remember.
    folder: where every job run is noted, one line each, in jobs.jsonl.
    """

    fail: dict[int, str] = field(default_factory=dict)
    folder: Path | None = None

    def __call__(self) -> FakeWorker:
        """Return the worker: it is its own factory."""
        return self

    def run(self, job: Job) -> JobResult:
        """Answer a job. Accuracy grows with the rung and peaks at a learning rate of 0.03."""
        if self.folder is not None:
            noted = {"trial": job.trial, "kind": job.kind, "rung": job.rung, "process": os.getpid()}
            append_line(self.folder / "jobs.jsonl", noted)
        if job.rung == 0 and job.kind == "rung":
            self._go_wrong(job)
        return JobResult(metrics=fake_metrics(job), cost={"seconds": 0.0, "trained_samples": 1000 * job.epochs})

    def _go_wrong(self, job: Job) -> None:
        what = self.fail.get(job.trial)
        if what == "loss":
            raise LossNotFinite("the loss became NaN")
        if what == "memory":
            raise OutOfMemory("the trial needs 9 GB")
        if what == "error":
            raise TrialFailed("something else")
        if what == "killed" or (what == "killed_once" and self._first_time(job)):
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "hangs_once" and self._first_time(job):
            threading.Event().wait()

    def _first_time(self, job: Job) -> bool:
        assert self.folder is not None, "what goes wrong once needs a folder to remember in"
        mark = self.folder / f"once-{job.trial}"
        known = mark.exists()
        mark.touch()
        return not known


def broken_worker() -> FakeWorker:
    """Fail as a factory does that cannot build its model."""
    raise BadInput("no weights here")


def fake_metrics(job: Job) -> dict[str, float]:
    """Return what a trial of this recipe would measure."""
    recipe = Recipe.parse(job.recipe)
    training = next((r for r in recipe.recovery if r.trains), None)
    off = abs(math.log(getattr(training, "lr", 0.03) / 0.03))
    noise = derive_seed(job.seed, "noise", job.rung) / 2**63
    fraction = recipe.target.flops_fraction or 1.0
    accuracy = 0.6 + 0.1 * job.rung + 0.2 * fraction - 0.05 * off + 0.02 * noise
    return {
        "accuracy": min(1.0, accuracy),
        "loss": 1.0 - accuracy,
        "flops_fraction": fraction * (1 - 0.01 * noise),
        "params_fraction": fraction,
        "latency_ms": 10 * fraction,
    }


def example_space(trial: Any) -> Recipe:
    """Return a recipe drawn from an Optuna trial: a search space as a function."""
    criterion = trial.suggest_categorical("criterion", ["l1_norm", "l2_norm"])
    lr = trial.suggest_float("lr", 0.005, 0.1, log=True)
    return Recipe.parse({"criterion": criterion, "recovery": ["bn_reestimation", {"name": "finetune", "lr": lr}]})
