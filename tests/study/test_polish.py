from __future__ import annotations

import pytest

from autoprune.errors import BadInput
from autoprune.study import events
from autoprune.study.executors.inline import Inline
from autoprune.study.jobs import JobFailure, run_job
from autoprune.study.polish import Polisher, polish
from autoprune.study.run_folder import RunFolder
from autoprune.study.testing import FakeWorker


class WithTest(FakeWorker):
    """Says what a polish says that has a test split."""

    def run(self, job):
        result = super().run(job)
        return type(result)(metrics=dict(result.metrics) | {"test_accuracy": 0.5, "test_count": 10.0}, cost=result.cost)

    def __call__(self):
        return self


@pytest.fixture
def study(runner, make_config):
    config = make_config(budget__trials=4)
    return config, runner.run(config)


def polisher(runner, config, epochs=3.0, repeats=1, trials=(0, 2)):
    record = runner.read(config)
    chosen = [record.trials[n] for n in trials]
    return Polisher(config, runner.storage, chosen, epochs=epochs, repeats=repeats, listen=runner._listen)


def test_every_model_and_repeat_is_trained_once(runner, study):
    config, _ = study
    Inline().run(polisher(runner, config, repeats=2), WithTest(folder=runner.folder), runner.folder)
    record = runner.read(config)
    assert [[one.repeat for one in t.polished] for t in record.trials] == [[0, 1], [], [0, 1], []]
    one = record.trials[2].polished[1]
    assert (one.epochs, one.test, one.cost["trained_samples"]) == (3.0, {"accuracy": 0.5, "count": 10.0}, 3000)
    assert "test_accuracy" not in one.metrics
    assert [(e.trial, e.repeat, e.done, e.total) for e in runner.of(events.Polished)] == [
        (0, 0, 1, 4), (2, 0, 2, 4), (0, 1, 3, 4), (2, 1, 4, 4),
    ]  # fmt: skip


def test_what_was_recorded_is_not_done_again(runner, study):
    config, _ = study
    first = polisher(runner, config)
    job = first.next_job()
    first.tell(job, run_job(WithTest(), job))
    again = polisher(runner, config)
    assert again.next_job().trial == 2
    assert again.next_job() is None
    assert polisher(runner, config, repeats=2).next_job().key == (2, "polish", 2, 0)


def test_another_length_is_another_training(runner, study):
    config, _ = study
    Inline().run(polisher(runner, config, epochs=3.0), WithTest(), runner.folder)
    assert not polisher(runner, config, epochs=3.0).has_work()
    Inline().run(polisher(runner, config, epochs=5.0), WithTest(), runner.folder)
    assert [one.epochs for one in runner.read(config).trials[0].polished] == [5.0]


def test_a_lost_training_is_tried_again_then_named(runner, study):
    config, _ = study
    one = polisher(runner, config, trials=(0,))
    lost = JobFailure(kind="WorkerDied", message="killed", lost=True)
    first = one.next_job()
    one.tell(first, lost)
    again = one.next_job()
    assert (again.key, again.attempt) == (first.key, 1)
    one.tell(again, lost)
    assert one.failures == ["trial 0, polish 0: killed"]
    assert one.next_job() is None


def test_the_rest_of_the_record_stays(runner, study, results):
    config, before = study
    Inline().run(polisher(runner, config), WithTest(), runner.folder)
    assert results(runner.read(config)) == results(before)


@pytest.mark.parametrize(("epochs", "repeats"), [(0.0, 1), (-1.0, 1), (1.0, 0)])
def test_numbers_that_say_nothing_are_refused(tmp_path, epochs, repeats):
    with pytest.raises(BadInput, match="--epochs above 0 and --repeats of at least 1"):
        polish(RunFolder(tmp_path), [], epochs=epochs, repeats=repeats)
