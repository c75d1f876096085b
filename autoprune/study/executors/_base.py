"""The contract of executors."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from pathlib import Path

from autoprune.study.jobs import Director, WorkerFactory


class Executor(ABC):
    """Runs jobs until the controller has no more."""

    @abstractmethod
    def run(self, controller: Director, factory: WorkerFactory, folder: Path) -> None:
        """Run the study to its end.

        factory: makes a worker where it is called. folder: the run folder, for the executor's own files.
        When it raises, KeyboardInterrupt included, no worker of it is left. Raises Failure when workers cannot be made.
        """

    def clock(self) -> float:
        """Return the seconds of the clock that its jobs run on; differences count."""
        return time.monotonic()
