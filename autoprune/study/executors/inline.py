"""Runs jobs one after the other in this process."""

from __future__ import annotations

from pathlib import Path

from autoprune.study.executors._base import Executor
from autoprune.study.jobs import Director, Job, WorkerFactory, run_job


class Inline(Executor):
    """No other process: for tests, debugging, and machines where processes are not wanted."""

    def run(self, controller: Director, factory: WorkerFactory, folder: Path) -> None:
        """See Executor."""
        worker = factory()
        while isinstance(job := controller.next_job(), Job):
            controller.started(job)
            controller.tell(job, run_job(worker, job))
