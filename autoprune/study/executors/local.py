"""Runs jobs in worker processes on this machine.

A worker is `python -m autoprune.study.executors._serve` at the other end of a socket pair. The socket is also its life
line: when the driver dies, by whatever signal, the kernel closes the socket and the worker leaves at once, in the
middle of a job too. When a worker dies, the driver reads the end of the same socket, gives the job back, and starts
another worker. Nothing of the driver's main module is imported, so scripts need no `if __name__ == "__main__"`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from autoprune.errors import Failure
from autoprune.study.executors._base import Executor
from autoprune.study.jobs import Director, Job, JobFailure, WorkerFactory

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_FRUITLESS_STARTS = 3
_LOG_LINES = 8


@dataclass
class _Process:
    """A worker process as the driver sees it. `job` is what it works on; it is not `ready` until it says so."""

    process: subprocess.Popen[bytes]
    line: Connection
    log: Path
    ready: bool = False
    job: Job | None = None


class Local(Executor):
    """Worker processes on this machine."""

    def __init__(self, *, workers: int, threads: int) -> None:
        self._count, self._threads = workers, threads

    def run(self, controller: Director, factory: WorkerFactory, folder: Path) -> None:
        """See Executor."""
        pool = _Pool(factory, self._threads, folder / "workers")
        try:
            pool.start(self._count)
            while _give_out(controller, pool.processes):
                for line in wait([p.line for p in pool.processes]):
                    pool.hear(controller, next(p for p in pool.processes if p.line is line))
        finally:
            pool.end()


def _give_out(controller: Director, processes: Sequence[_Process]) -> bool:
    """Give every free worker a job; tell whether the study goes on."""
    # without a worker that is ready a job is not asked for: what is asked last knows most
    for process in processes:
        if process.ready and process.job is None:
            job = controller.next_job()
            if not isinstance(job, Job):
                return any(p.job is not None for p in processes)
            process.job = job
            controller.started(job)
            _send(process, job)
    return True


def _send(process: _Process, message: object) -> None:
    try:
        process.line.send(message)
    except OSError:
        # it has died; the end of the line says so too, where this is dealt with
        return


class _Pool:
    def __init__(self, factory: WorkerFactory, threads: int, logs: Path) -> None:
        self._factory, self._threads, self._logs = factory, threads, logs
        self._started = self._fruitless = 0
        self.processes: list[_Process] = []

    def start(self, count: int) -> None:
        """Start workers."""
        self._logs.mkdir(parents=True, exist_ok=True)
        for _ in range(count):
            self.processes.append(self._start_one())

    def hear(self, controller: Director, process: _Process) -> None:
        """Take one message of a worker, or its death. Raises Failure when workers do not come up."""
        try:
            kind, content = process.line.recv()
        except (EOFError, OSError):
            self._bury(controller, process)
            return
        if kind == "broken":
            raise Failure(f"a worker cannot start: {content}")
        self._fruitless = 0
        job, process.job = process.job, None
        if kind == "ready":
            process.ready = True
        elif job is not None:
            controller.tell(job, content)

    def end(self) -> None:
        """Close every line, which ends the workers, and wait for them."""
        for process in self.processes:
            process.line.close()
            process.process.kill()
        for process in self.processes:
            process.process.wait()

    def _start_one(self) -> _Process:
        ours, theirs = socket.socketpair()
        self._started += 1
        log = self._logs / f"{os.getpid()}-{self._started}.log"
        with theirs, log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "autoprune.study.executors._serve", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(self._threads),
            )
        started = _Process(process, Connection(ours.detach()), log)
        _send(started, (self._factory, self._threads))
        return started

    def _bury(self, controller: Director, process: _Process) -> None:
        process.line.close()
        # it may have closed the line without dying
        process.process.kill()
        reason = _how_it_died(process.process.wait())
        self.processes.remove(process)
        if not process.ready:
            self._fruitless += 1
            if self._fruitless >= _FRUITLESS_STARTS:
                raise Failure(f"workers do not start: {reason}; {process.log} ends with:\n{_tail(process.log)}")
        self.processes.append(self._start_one())
        if process.job is not None:
            message = f"the worker of {process.job} {reason}"
            controller.tell(process.job, JobFailure(kind="WorkerDied", message=message, lost=True))


def _environment(threads: int) -> dict[str, str]:
    """Return the environment of a worker: its threads, and this process's import path."""
    paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    return {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(threads)), "PYTHONPATH": paths}


def _how_it_died(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    name = signal.Signals(-status).name
    return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:])
