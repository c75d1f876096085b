"""Ray Tune gives the same records, whatever dies."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from autoprune.errors import BadInput, Failure
from autoprune.files import read_lines
from autoprune.study import events
from autoprune.study.executors import build_executor
from autoprune.study.testing import FakeWorker, broken_worker

# Ray's own code warns; its sockets and its log files are closed when its processes end
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module", autouse=True)
def _two_cpus() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def on_ray(config):
    return build_executor(config.executor)


def test_one_worker_gives_the_records_of_inline(runner, tmp_path, make_config, results):
    worker = FakeWorker(fail={5: "loss"})
    inline = runner.run(make_config(), worker, test=True)
    other = type(runner)(tmp_path)
    config = make_config(executor__name="ray")
    ray = other.run(config, worker, on_ray(config), test=True)
    assert results(ray) == results(inline)
    assert [t.test for t in ray.trials] == [t.test for t in inline.trials]


def test_actors_are_kept_and_a_dead_one_costs_a_retry(runner, make_config):
    config = make_config(executor={"name": "ray", "workers": 2})
    worker = FakeWorker(fail={1: "killed_once", 4: "killed", 5: "memory"}, folder=runner.folder)
    record = runner.run(config, worker, on_ray(config))
    assert [e.trial for e in runner.of(events.JobRetried)] in ([1, 4], [4, 1])
    assert {t.number: t.error_kind for t in record.trials if t.state == "failed"} == {
        4: "WorkerDied",
        5: "OutOfMemory",
    }
    assert len(record.trials) == 10
    processes = {job["process"] for job in read_lines(runner.folder / "jobs.jsonl")}
    assert len(processes) <= 2 + 3, "two actors and one for each that died"


def test_workers_that_cannot_be_made_end_the_study_with_the_reason(runner, make_config):
    config = make_config(executor__name="ray")
    with pytest.raises(Failure, match="a worker cannot start: BadInput: no weights here"):
        runner.run(config, broken_worker, on_ray(config))


def test_more_than_the_cluster_has_is_refused(runner, make_config):
    config = make_config(executor={"name": "ray", "gpus_per_trial": 1})
    with pytest.raises(BadInput, match=r"needs 1 CPUs and 1 GPUs; the Ray cluster has 2 and 0"):
        runner.run(config, FakeWorker(), on_ray(config))
