from __future__ import annotations

import pytest

from autoprune.errors import BadInput, MissingDependency
from autoprune.study.jobs import Job, run_job
from autoprune.study.records import opened, read_study, storage_url
from autoprune.study.testing import FakeWorker


def test_sqlite_in_the_run_folder(runner, make_config, results):
    config = make_config(budget__trials=3)
    with opened(config, runner.folder) as storage:
        controller = runner.controller(config, storage)
        controller.record_base({"accuracy": 0.9})
        while isinstance(job := controller.next_job(), Job):
            controller.tell(job, run_job(FakeWorker(), job))
    record = read_study(config, runner.folder)
    assert record.base == {"accuracy": 0.9}
    assert results(record) == results(runner.run(config)), "as in memory"
    assert record.seconds > 0
    assert record.trials[0].value("accuracy") == record.trials[0].metrics["accuracy"]


def test_before_the_first_trial_there_is_an_empty_record(tmp_path, make_config):
    assert read_study(make_config(), tmp_path).trials == ()


def test_a_storage_of_ones_own(tmp_path, make_config, monkeypatch):
    monkeypatch.setenv("DB", str(tmp_path / "other.db"))
    config = make_config(storage="sqlite:///${DB}")
    assert storage_url(config, tmp_path) == f"sqlite:///{tmp_path}/other.db"
    with opened(config, tmp_path):
        pass
    assert (tmp_path / "other.db").exists()


def test_storages_that_cannot_be_opened(tmp_path, make_config):
    with (
        pytest.raises(BadInput, match=r"the storage sqlite:.*cannot be opened"),
        opened(make_config(storage="sqlite:////nowhere/x.db"), tmp_path),
    ):
        pass
    with pytest.raises(BadInput, match="cannot be opened"), opened(make_config(storage="nonsense"), tmp_path):
        pass
    with (
        pytest.raises(MissingDependency, match=r"oracle.*database driver") as caught,
        opened(make_config(storage="oracle://me:secret@db/x"), tmp_path),
    ):
        pass
    assert "secret" not in str(caught.value)
