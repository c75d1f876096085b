"""Answers jobs from a table of outcomes, on a clock of its own."""

from __future__ import annotations

import heapq
from pathlib import Path

from autoprune.study.executors._base import Executor
from autoprune.study.jobs import Director, Job, JobFailure, JobResult, WorkerFactory, run_job


class Replay(Executor):
    """Simulated workers: a job ends after the seconds that it cost when it was measured, and results arrive in that
    order, so that a stopper sees what it would have seen with so many workers."""

    def __init__(self, *, workers: int) -> None:
        self._count, self._now = workers, 0.0

    def clock(self) -> float:
        """Return the simulated seconds."""
        return self._now

    def run(self, controller: Director, factory: WorkerFactory, folder: Path) -> None:
        """See Executor. `factory` makes a worker that answers from a table."""
        worker = factory()
        running: list[tuple[float, int, Job, JobResult | JobFailure]] = []
        given = 0
        while True:
            while len(running) < self._count and isinstance(job := controller.next_job(), Job):
                controller.started(job)
                outcome = run_job(worker, job)
                seconds = outcome.cost.get("seconds", 0.0) if isinstance(outcome, JobResult) else 0.0
                given += 1  # of jobs that end at the same moment the first given ends first
                heapq.heappush(running, (self._now + seconds, given, job, outcome))
            if not running:
                return
            self._now, _, job, outcome = heapq.heappop(running)
            controller.tell(job, outcome)
