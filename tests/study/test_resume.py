"""A driver is killed in another process; the same command goes on."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from autoprune.files import read_lines
from autoprune.study.records import read_study

DRIVER = """
import json, signal, sys
from pathlib import Path
from autoprune.search.space import load_space
from autoprune.study.config import load
from autoprune.study.controller import Controller
from autoprune.study.executors import build_executor
from autoprune.study.records import opened
from autoprune.study.testing import FakeWorker, fake_structure

# a shell that starts tests in the background has them ignore interrupts
signal.signal(signal.SIGINT, signal.default_int_handler)
folder, config = Path(sys.argv[1]), load(json.loads(sys.argv[2])).config

def listen(event):
    print(type(event).__name__, getattr(event, "trial", ""), flush=True)

with opened(config, folder) as storage:
    controller = Controller(config, load_space(config.search_space), fake_structure(), storage, listen=listen)
    worker = FakeWorker(fail={5: "hangs_once"}, folder=folder)
    build_executor(config.executor).run(controller, worker, folder)
"""
ROOT = Path(__file__).parents[2]


def drive(folder: Path, config) -> subprocess.Popen[str]:
    """Start a driver that announces every event on its standard output."""
    command = [sys.executable, "-c", DRIVER, str(folder), json.dumps(config.plain())]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def wait_until_gone(process: int) -> None:
    """Wait for the end of a process that is not our child. Raises AssertionError after 20 seconds."""
    try:
        handle = os.pidfd_open(process)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        assert poll.poll(20_000), f"process {process} outlives its driver"
    finally:
        os.close(handle)


def jobs(folder: Path) -> list[dict[str, int]]:
    return read_lines(folder / "jobs.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_nothing_is_lost_or_repeated(tmp_path, make_config, how):
    config = make_config(executor={"name": "local", "workers": 2}, budget__trials=12)
    with drive(tmp_path, config) as driver:
        # trial 5 hangs in its worker; the other worker goes on until the driver goes down
        for line in driver.stdout:
            if line.startswith("RungDone 7"):
                break
        driver.send_signal(how)
        driver.wait(timeout=20)
    for process in {job["process"] for job in jobs(tmp_path)}:
        wait_until_gone(process)
    before = read_study(config, tmp_path)
    assert before.trials[5].state == "running"

    with drive(tmp_path, config) as driver:
        said = driver.stdout.read()
        assert driver.wait(timeout=60) == 0, said
    after = read_study(config, tmp_path)
    assert len(after.trials) == 12
    assert {t.state for t in after.trials} == {"done", "stopped"}
    for old, new in zip(before.trials, after.trials, strict=False):
        assert new.rungs[: len(old.rungs)] == old.rungs
        if old.state in ("done", "stopped"):
            assert old == new
        if old.recipe is not None:
            assert (old.recipe, old.seed) == (new.recipe, new.seed)
    # the jobs that ran when the driver went down are the only ones that ran twice: one in each worker
    twice = [key for key, count in Counter((j["trial"], j["rung"]) for j in jobs(tmp_path)).items() if count > 1]
    assert (5, 0) in twice
    assert len(twice) <= 2
