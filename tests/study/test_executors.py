"""Inline and local: the same records, whatever dies."""

from __future__ import annotations

import importlib
import sys
from collections import Counter

import pytest

from autoprune.errors import Failure
from autoprune.files import read_lines
from autoprune.study import events
from autoprune.study.executors import build_executor
from autoprune.study.executors.local import Local
from autoprune.study.testing import FakeWorker, broken_worker

HELPERS = """
import os
from pathlib import Path
from autoprune.study.testing import FakeWorker

def dying():
    print("last words")
    os._exit(3)

def telling():
    Path("threads").write_text(os.environ["OMP_NUM_THREADS"])
    return FakeWorker()
"""


@pytest.fixture
def helpers(tmp_path, monkeypatch):
    """A module of worker factories that other processes can import too."""
    (tmp_path / "worker_helpers.py").write_text(HELPERS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield importlib.import_module("worker_helpers")
    del sys.modules["worker_helpers"]


def test_one_local_worker_gives_the_records_of_none(runner, tmp_path, make_config, results):
    worker = FakeWorker(fail={5: "loss"})
    inline = runner.run(make_config(), worker)
    other = type(runner)(tmp_path)
    local = other.run(make_config(), worker, Local(workers=1, threads=1))
    assert results(local) == results(inline)


def test_two_local_workers_run_every_job_once(runner, make_config):
    record = runner.run(make_config(), FakeWorker(folder=runner.folder), Local(workers=2, threads=1))
    assert len(record.trials) == 10
    assert {t.state for t in record.trials} <= {"done", "stopped"}
    jobs = read_lines(runner.folder / "jobs.jsonl")
    assert set(Counter((e["trial"], e["rung"]) for e in jobs).values()) == {1}


def test_a_killed_worker_costs_a_retry(runner, make_config):
    worker = FakeWorker(fail={1: "killed_once"}, folder=runner.folder)
    record = runner.run(make_config(), worker, Local(workers=1, threads=1))
    (retried,) = runner.of(events.JobRetried)
    assert retried.trial == 1
    assert "killed by SIGKILL (out of memory?)" in retried.message
    assert {t.state for t in record.trials} <= {"done", "stopped"}


def test_a_job_that_always_kills_its_worker_fails_and_the_study_goes_on(runner, make_config):
    worker = FakeWorker(fail={4: "killed"})
    record = runner.run(make_config(budget__trials=6), worker, Local(workers=2, threads=1))
    assert record.trials[4].state == "failed"
    assert record.trials[4].error_kind == "WorkerDied"
    assert all(t.state in ("done", "stopped") for t in record.trials if t.number != 4)


def test_workers_that_cannot_be_made_end_the_study_with_the_reason(runner, make_config):
    with pytest.raises(Failure, match="a worker cannot start: BadInput: no weights here"):
        runner.run(make_config(), broken_worker, Local(workers=1, threads=1))


def test_workers_that_die_at_once_end_the_study_with_their_log(runner, make_config, helpers):
    with pytest.raises(Failure, match=r"workers do not start: ended with status 3"):
        runner.run(make_config(), helpers.dying, Local(workers=1, threads=1))


def test_threads_are_limited_by_the_environment(runner, make_config, helpers, tmp_path):
    runner.run(make_config(budget__trials=1), helpers.telling, Local(workers=1, threads=2))
    assert (tmp_path / "threads").read_text() == "2"


def test_executors_by_name(make_config):
    made = build_executor(make_config(executor__name="local").executor)
    assert isinstance(made, Local)
    assert "ray" not in type(build_executor(make_config().executor)).__module__
