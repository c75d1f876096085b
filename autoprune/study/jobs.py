"""The small values that pass between who decides (controller), who runs (worker) and who carries (executor)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from autoprune.errors import AutopruneError, LossNotFinite, OutOfMemory


@dataclass(frozen=True, kw_only=True)
class Job:
    """One rung of one trial, the test of a finished one, or a long last training of one.

    epochs: what this job adds. samples: of the validation split, None is all. latency: measure it as well. finished:
    measure what the recipe or the study ask for of finished models too (see `trial.finishing`).
    repeat: of a `polish`; 0 goes on with the trial's model, others begin again at the base model with another seed.
    """

    trial: int
    rung: int
    recipe: Mapping[str, Any]
    seed: int
    epochs: float
    samples: int | None
    latency: bool = False
    finished: bool = False
    kind: Literal["rung", "test", "polish"] = "rung"
    attempt: int = 0
    repeat: int = 0

    @property
    def key(self) -> tuple[int, str, int, int]:
        """What this job is, whichever attempt."""
        return self.trial, self.kind, self.rung, self.repeat

    def __str__(self) -> str:
        what = {"rung": f"rung {self.rung}", "test": "test", "polish": f"polish {self.repeat}"}
        return f"trial {self.trial}, {what[self.kind]}"


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """What a job found. cost: samples and seconds. amounts: kept units, ranks and fractions (rung 0 only)."""

    metrics: Mapping[str, float]
    cost: Mapping[str, float] = field(default_factory=dict)
    amounts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """Return the result as it is recorded."""
        found: dict[str, Any] = {"metrics": dict(self.metrics), "cost": dict(self.cost)}
        return (
            found
            | ({"amounts": dict(self.amounts)} if self.amounts else {})
            | ({"notes": list(self.notes)} if self.notes else {})
        )


@dataclass(frozen=True, kw_only=True)
class JobFailure:
    """Why a job gave no result. lost: its worker died, so that running it again may help."""

    kind: str
    message: str
    lost: bool = False


class JobQueue:
    """Jobs that wait and jobs that run; each is finished once."""

    def __init__(self, jobs: Iterable[Job] = ()) -> None:
        self.ready: deque[Job] = deque(jobs)
        self._running: dict[object, Job] = {}

    @property
    def runs(self) -> bool:
        """Whether any job runs."""
        return bool(self._running)

    def add(self, job: Job) -> None:
        """Queue a job behind the others."""
        self.ready.append(job)

    def take(self) -> Job | None:
        """Return the next job, which runs from now on; None when none waits."""
        if not self.ready:
            return None
        job = self.ready.popleft()
        self._running[job.key] = job
        return job

    def drop(self, kind: str) -> list[Job]:
        """Take the waiting jobs of one kind off the queue and return them."""
        dropped = [job for job in self.ready if job.kind == kind]
        self.ready = deque(job for job in self.ready if job.kind != kind)
        return dropped

    def finish(self, job: Job) -> bool:
        """Note that a job is over. False: it was not running, and what came of it is not to be recorded again."""
        return self._running.pop(job.key, None) is not None

    def again(self, job: Job, failure: JobFailure, max_failures: int) -> Job | None:
        """Queue a job once more, before the others, when its worker was lost and it may; return it, or None."""
        if not failure.lost or job.attempt >= max_failures:
            return None
        job = replace(job, attempt=job.attempt + 1)
        self.ready.appendleft(job)
        return job


class Director(Protocol):
    """Decides what runs next and hears what came of it; executors call it from one thread."""

    def next_job(self) -> object:
        """Return the next job for a free worker; anything but a Job means none now."""

    def started(self, job: Job) -> None:
        """Note that a worker has begun a job."""

    def tell(self, job: Job, outcome: JobResult | JobFailure) -> None:
        """Record what came of a job."""


class Worker(Protocol):
    """Runs jobs, one after the other, in one process."""

    def run(self, job: Job) -> JobResult: ...


WorkerFactory = Callable[[], Worker]
"""Makes a worker in the process that it is called in; can be pickled."""


def run_job(worker: Worker, job: Job) -> JobResult | JobFailure:
    """Run a job. Whatever goes wrong in it becomes a JobFailure, so that the worker lives on."""
    try:
        result = worker.run(job)
        accuracy = result.metrics.get("accuracy", 0.0)
        if not math.isfinite(accuracy):
            raise LossNotFinite(f"the accuracy of {job} is {accuracy}")
        return result
    except AutopruneError as error:
        return JobFailure(kind=type(error).__name__, message=str(error))
    except MemoryError as error:
        return JobFailure(kind=OutOfMemory.__name__, message=f"{job} ran out of memory: {error}")
    except Exception as error:  # a trial may fail in any way, the study goes on
        return _unexpected(job, error)


def _unexpected(job: Job, error: Exception) -> JobFailure:
    text = str(error).strip()
    # torch raises a class of its own on GPUs and a plain RuntimeError on CPUs; neither needs torch imported here
    if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        return JobFailure(kind=OutOfMemory.__name__, message=f"{job} ran out of memory: {text}")
    return JobFailure(kind=type(error).__name__, message=f"{job}: {type(error).__name__}: {text or 'no message'}")
