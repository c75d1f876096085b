"""The main program of a local worker process: `python -m autoprune.study.executors._serve <socket number>`."""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

from autoprune.study.jobs import run_job


def main(number: int) -> None:
    """Make a worker, say so, and answer jobs until the line ends."""
    # Ctrl-C reaches the whole process group; it is the driver that decides what becomes of the workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    line = Connection(number)
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(line, inbox), daemon=True).start()
    factory, threads = inbox.get()
    try:
        worker = factory()
    except Exception as error:
        line.send(("broken", f"{type(error).__name__}: {error}"))
        raise
    limit_threads(threads)
    line.send(("ready", None))
    while True:
        line.send(("done", run_job(worker, inbox.get())))


def _listen(line: Connection, inbox: queue.SimpleQueue[Any]) -> None:
    """Pass on what the driver sends. The end of the line is the driver's end, and so the worker's, whatever it does."""
    try:
        while True:
            inbox.put(line.recv())
    except (EOFError, OSError):
        os._exit(0)
    except BaseException as error:
        line.send(("broken", f"{type(error).__name__}: {error}"))
        os._exit(1)


def limit_threads(threads: int) -> None:
    """Limit torch's own threads, if the worker uses torch at all; the environment limits OpenMP."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    main(int(sys.argv[1]))
