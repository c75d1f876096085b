"""A long last training, spent only on the models of a front, and on repeats of them with other seeds.

It continues a study that is over and is itself resumable: a training that was recorded is not done again, one that was
cut off is. With repeats the front's recipes run again from the base model, through all rungs, with seeds of their own;
their spread is what a single accuracy does not tell.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autoprune.errors import BadInput
from autoprune.study import events, records
from autoprune.study.executors import build_executor
from autoprune.study.jobs import Job, JobFailure, JobQueue, JobResult
from autoprune.study.records import StudyRecord, TrialRecord, check_owner, opened, read_study
from autoprune.study.run_folder import RunFolder

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from autoprune.study.config import StudyConfig


class Polisher:
    """Hands out the trainings that are missing, and records them; a Director for executors."""

    def __init__(
        self,
        config: StudyConfig,
        storage: BaseStorage,
        trials: Sequence[TrialRecord],
        *,
        epochs: float,
        repeats: int,
        listen: events.Listener = events.ignore,
    ) -> None:
        """trials: the front, as recorded. epochs: what is added. repeats: trainings of each, its own included."""
        self._config, self._storage, self._listen = config, storage, listen
        self._study = storage.get_study_id_from_name(config.name)
        wanted = [(trial, repeat) for repeat in range(repeats) for trial in trials]
        self._jobs = JobQueue(_job(t, r, epochs, config) for t, r in wanted if not _is_there(t, r, epochs))
        self._total = len(wanted)
        self._done = self._total - len(self._jobs.ready)
        self.failures: list[str] = []

    def has_work(self) -> bool:
        """Tell whether any training is missing."""
        return bool(self._jobs.ready)

    def next_job(self) -> Job | None:
        """Return the next training, None when there is none now."""
        return self._jobs.take()

    def started(self, job: Job) -> None:
        """Note that a worker has begun a training."""
        self._listen(events.JobStarted(trial=job.trial, kind=job.kind, rung=job.rung))

    def tell(self, job: Job, outcome: JobResult | JobFailure) -> None:
        """Record what came of a training. One that is not running is not recorded again."""
        if not self._jobs.finish(job):
            return
        if isinstance(outcome, JobFailure):
            self._failed(job, outcome)
            return
        noted = {
            "repeat": job.repeat,
            "epochs": job.epochs,
            "metrics": {k: v for k, v in outcome.metrics.items() if not k.startswith("test_")},
            "test": {k.removeprefix("test_"): v for k, v in outcome.metrics.items() if k.startswith("test_")},
            "cost": dict(outcome.cost),
        }
        self._storage.set_study_user_attr(self._study, f"{records.POLISH}{job.trial}_{job.repeat}", noted)
        self._done += 1
        self._listen(
            events.Polished(
                trial=job.trial, repeat=job.repeat, metrics=outcome.metrics, done=self._done, total=self._total
            )
        )

    def _failed(self, job: Job, failure: JobFailure) -> None:
        if self._jobs.again(job, failure, self._config.executor.max_failures):
            return
        self.failures.append(f"{job}: {failure.message}")
        self._listen(events.Warned(message=f"{job} failed: {failure.message}"))


def polish(
    run: RunFolder,
    trials: Sequence[TrialRecord],
    *,
    epochs: float,
    repeats: int = 1,
    listen: events.Listener = events.ignore,
) -> tuple[StudyRecord, list[str]]:
    """Train these finished trials of a study for `epochs` more; return the study's record and what failed.

    Raises BadInput for epochs or repeats that say nothing, a replayed study, or a folder that is in use.
    """
    from autoprune.study.replay import is_replayed

    if epochs <= 0 or repeats < 1:
        raise BadInput(f"polish needs --epochs above 0 and --repeats of at least 1, got {epochs:g} and {repeats}")
    if is_replayed(run):
        raise BadInput(f"{run.path} holds a replayed study, which has no models; there is nothing to train")
    config = run.config()
    with run.locked(), opened(config, run.path) as storage:
        check_owner(storage, config, run.identity())
        polisher = Polisher(config, storage, trials, epochs=epochs, repeats=repeats, listen=listen)
        if polisher.has_work():
            from autoprune.study.worker import make_worker

            factory = functools.partial(make_worker, Path(run.path).absolute())
            build_executor(config.executor).run(polisher, factory, run.path)
    return read_study(config, run.path), polisher.failures


def _job(trial: TrialRecord, repeat: int, epochs: float, config: StudyConfig) -> Job:
    return Job(
        trial=trial.number,
        rung=config.rungs.top,
        recipe=trial.recipe or {},
        seed=trial.seed or 0,
        epochs=epochs,
        samples=None,
        kind="polish",
        repeat=repeat,
    )


def _is_there(trial: TrialRecord, repeat: int, epochs: float) -> bool:
    return any(one.repeat == repeat and one.epochs == epochs for one in trial.polished)
