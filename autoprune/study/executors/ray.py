"""Runs jobs on Ray Tune: one Tune trial is one job, one rung of one of our trials.

Tune's extension points used: a `Searcher` that asks the controller, and a class `Trainable` with `reset_config`, kept
alive between jobs by `reuse_actors`. Rung decisions need no `TrialScheduler`: a promoted trial's next rung is simply
the next job that the searcher hands out. So Tune has nothing to remember between rungs, a lost node costs one rung and
is retried by the same rule as everywhere, and a study can change its executor in the middle.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher

from autoprune.errors import BadInput, Failure
from autoprune.study.executors._base import Executor
from autoprune.study.executors._serve import limit_threads
from autoprune.study.jobs import Director, Job, JobFailure, JobResult, WorkerFactory, run_job

_TUNE_FOLDER = "ray"
_ENVIRONMENT = {
    # the controller keeps the record; Tune's own copies of results and its state would only cost time
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    # Ctrl-C is ours to handle
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # functions and relative paths of the study mean the directory it was launched in
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_WARN_THRESHOLD_S": "60",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


class OnRay(Executor):
    """Ray Tune, on this machine or on a cluster whose nodes share the run folder."""

    def __init__(
        self,
        *,
        workers: int | None,
        threads: int,
        cpus_per_trial: float,
        gpus_per_trial: float,
        address: str | None,
    ) -> None:
        self._workers, self._threads, self._address = workers, threads, address
        self._resources = {"cpu": cpus_per_trial, "gpu": gpus_per_trial}

    def run(self, controller: Director, factory: WorkerFactory, folder: Path) -> None:
        """See Executor."""
        with _environment(), _quiet(), self._connected():
            searcher = _Search(controller, self._fitting_workers())
            try:
                self._tuner(searcher, factory, folder).fit()
            except ray.exceptions.RayError as error:
                raise Failure(f"Ray failed: {error}") from error
            finally:
                # a folder for each Tune trial and Tune's own state: nothing that anybody needs again
                shutil.rmtree(folder / _TUNE_FOLDER, ignore_errors=True)
            if searcher.trouble is not None:
                raise Failure(searcher.trouble)

    def _tuner(self, searcher: _Search, factory: WorkerFactory, folder: Path) -> tune.Tuner:
        trainable = tune.with_parameters(RungJob, factory=factory, threads=self._threads)
        return tune.Tuner(
            tune.with_resources(trainable, self._resources),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=-1,
                reuse_actors=True,
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                name=_TUNE_FOLDER,
                storage_path=str(folder.absolute()),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            ),
        )

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """Use the Ray that is running in this process, else the cluster at the address, else one of our own."""
        if ray.is_initialized():
            yield
            return
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._address is None:
            options |= {"address": "local", "include_dashboard": False, "num_cpus": self._own_cpus()}
        else:
            options |= {"address": self._address}
        try:
            ray.init(**options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise BadInput(f"executor.address: no Ray cluster at {self._address!r}: {error}") from error
        try:
            yield
        finally:
            ray.shutdown()

    def _own_cpus(self) -> int:
        cores = len(os.sched_getaffinity(0))
        return max(cores, round((self._workers or 1) * self._resources["cpu"]))

    def _fitting_workers(self) -> int:
        """Return how many jobs run at once. Raises BadInput when not even one fits."""
        there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        fits = [
            int(there.get(name.upper(), 0.0) / needed + 1e-9) for name, needed in self._resources.items() if needed > 0
        ]
        most = min(fits, default=self._workers or 1)
        if most < 1:
            raise BadInput(
                f"a trial needs {self._resources['cpu']:g} CPUs and {self._resources['gpu']:g} GPUs; the Ray cluster "
                f"has {there.get('CPU', 0):g} and {there.get('GPU', 0):g} (executor.cpus_per_trial, gpus_per_trial)"
            )
        return min(most, self._workers) if self._workers else most


class RungJob(tune.Trainable):
    """One actor: a worker that is made once and answers one job after the other."""

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], factory: WorkerFactory, threads: int
    ) -> None:
        """Make the worker. What goes wrong is reported by `step`, so that it reaches the user as it is."""
        self._job = config["job"]
        self._worker, self._trouble = None, ""
        try:
            self._worker = factory()
        except Exception as error:
            self._trouble = f"a worker cannot start: {type(error).__name__}: {error}"
        limit_threads(threads)

    def step(self) -> dict[str, Any]:
        """Run the job."""
        if self._worker is None:
            return {"trouble": self._trouble, "done": True}
        return {"outcome": _packed(run_job(self._worker, _job(self._job))), "done": True}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next job; the worker stays."""
        self._job = new_config["job"]
        return True


class _Search(Searcher):
    """Hands Tune the controller's jobs, and the controller Tune's results. Runs in the driver."""

    def __init__(self, controller: Director, workers: int) -> None:
        super().__init__()
        self._controller, self._workers = controller, workers
        self._jobs: dict[str, Job] = {}
        self.trouble: str | None = None

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """Return the next job's config, None to be asked again, or that the study is over."""
        if self.trouble is not None:
            return str(Searcher.FINISHED)
        # Tune asks ahead of free workers; a job is given only to a free one, as what is asked last knows most
        if len(self._jobs) >= self._workers:
            return None
        job = self._controller.next_job()
        if isinstance(job, Job):
            self._jobs[trial_id] = job
            self._controller.started(job)
            return {"job": json.dumps(asdict(job)), "name": str(job)}
        return None if self._jobs else str(Searcher.FINISHED)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the controller what came of a job. An error here is an actor that died: jobs catch their own."""
        job = self._jobs.pop(trial_id, None)
        if job is None:
            return
        if result is not None and "trouble" in result:
            self.trouble = str(result["trouble"])
        elif error or result is None or "outcome" not in result:
            message = f"the Ray actor of {job} died (out of memory, or its node was lost)"
            self._controller.tell(job, JobFailure(kind="WorkerDied", message=message, lost=True))
        else:
            self._controller.tell(job, _unpacked(result["outcome"]))

    def __getstate__(self) -> dict[str, Any]:
        """Leave the controller out: Tune pickles its searcher to resume from, which we never do."""
        return self.__dict__ | {"_controller": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> _Search:
        return self

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the study of record is the Optuna storage."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing, as `save`."""


def _name(trial: Any) -> str:
    words = str(trial.config["name"]).replace(",", "").split()
    return "-".join([*words, trial.trial_id])


def _job(text: str) -> Job:
    return Job(**json.loads(text))


def _packed(outcome: JobResult | JobFailure) -> str:
    """Return an outcome as text: Tune flattens, averages and compares whatever numbers it sees in a result."""
    return json.dumps({"failed": isinstance(outcome, JobFailure), "outcome": asdict(outcome)})


def _unpacked(text: str) -> JobResult | JobFailure:
    read: Mapping[str, Any] = json.loads(text)
    if read["failed"]:
        return JobFailure(**read["outcome"])
    return JobResult(**(read["outcome"] | {"notes": tuple(read["outcome"]["notes"])}))


@contextmanager
def _environment() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray's loggers to errors while the study runs: the display is the command line's."""
    loggers = [logging.getLogger(name) for name in ("ray", "ray.tune", "ray.air", "ray.train")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
