"""Studies that need no training."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import BaseStorage, InMemoryStorage

from autoprune.search.space import load_space
from autoprune.study import events
from autoprune.study.config import StudyConfig, load
from autoprune.study.controller import Controller
from autoprune.study.executors import Executor, build_executor
from autoprune.study.jobs import WorkerFactory
from autoprune.study.records import RungRecord, StudyRecord, TrialRecord, record_of
from autoprune.study.testing import FakeWorker, fake_structure

optuna.logging.set_verbosity(optuna.logging.WARNING)

PLAIN = {
    "name": "fake",
    "model": {"name": "lenet"},
    "data": {"name": "digits"},
    "targets": [0.5, 0.25],
    "warm_start": [],
    "budget": {"trials": 10},
    "executor": {"name": "inline", "workers": 1},
}


def make_config(**changes: Any) -> StudyConfig:
    """Return the config of a fake study; dotted keys are written with two underscores."""
    return load(PLAIN, {key.replace("__", "."): value for key, value in changes.items()}).config


class Runner:
    """Runs fake studies in one folder and keeps their events. The storage is in memory, which is much faster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: list[events.Event] = []
        self.storage: BaseStorage = InMemoryStorage()
        self._lock = threading.RLock()  # as a live display holds one, which no executor may pickle

    def controller(self, config: StudyConfig, storage: BaseStorage | None = None, **options: Any) -> Controller:
        space = load_space(config.search_space)
        there = storage or self.storage
        return Controller(config, space, fake_structure(), there, listen=self._listen, **options)

    def _listen(self, event: events.Event) -> None:
        with self._lock:
            self.events.append(event)

    def run(
        self,
        config: StudyConfig,
        factory: WorkerFactory | None = None,
        executor: Executor | None = None,
        **options: Any,
    ) -> StudyRecord:
        chosen = executor or build_executor(config.executor)
        chosen.run(self.controller(config, **options), factory or FakeWorker(), self.folder)
        return self.read(config)

    def read(self, config: StudyConfig) -> StudyRecord:
        return record_of(self.storage, config, self.folder)

    def of(self, kind: type[events.Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


@pytest.fixture(name="make_config")
def _make_config() -> Callable[..., StudyConfig]:
    return make_config


@pytest.fixture
def results() -> Callable[[StudyRecord], list[Any]]:
    """What of a record must not depend on where the study ran."""

    def rungs(trial: TrialRecord) -> list[RungRecord]:
        return [replace(rung, at=0.0) for rung in trial.rungs]

    def of(record: StudyRecord) -> list[Any]:
        return [
            (t.number, t.state, t.baseline, t.target_label, t.recipe, t.seed, rungs(t), t.error) for t in record.trials
        ]

    return of
