"""Studies on digits with real training, small enough for a test."""

from __future__ import annotations

import pytest
import torch

from autoprune import artefact
from autoprune.errors import BadInput, UnreachableTarget
from autoprune.files import read_json, read_lines
from autoprune.report.front import Front
from autoprune.report.pick import Pick
from autoprune.study import events
from autoprune.study.config import load
from autoprune.study.launch import launch
from autoprune.study.preparation import preflight
from autoprune.study.records import StudyRecord
from autoprune.study.run_folder import RunFolder
from autoprune.study.worker import Worker

STUDY = {
    "name": "small",
    "model": {"name": "digits_resnet"},
    "train_base": {"epochs": 1},
    "data": {"name": "digits"},
    "targets": [0.5],
    "objectives": ["accuracy", "flops", "latency"],
    "rungs": {"epochs": [0, 0.25], "reduction": 2, "validation_samples": [64, None]},
    "budget": {"trials": 4},
    "trial": {"evidence_batches": 2, "device": "cpu"},
    "executor": {"name": "inline"},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[StudyRecord, list[events.Event]]:
    heard: list[events.Event] = []
    return launch(STUDY, run_dir=tmp_path_factory.mktemp("run"), listen=heard.append), heard


def test_a_study_ends_with_models_that_meet_their_target(finished):
    record, _ = finished
    assert len(record.trials) == 4
    assert {t.state for t in record.trials} <= {"done", "stopped"}
    for trial in record.trials:
        assert trial.metrics["flops_fraction"] <= 0.5
        assert trial.metrics["latency_ms"] > 0
    assert record.base["flops_fraction"] == 1.0
    assert "cores" in read_json(RunFolder(record.folder).machine_file)
    assert 0 < record.base["test_accuracy"] <= 1
    assert all(t.test["count"] == 359 for t in record.done() if t.baseline)


def test_rungs_use_their_samples_and_epochs(finished):
    record, _ = finished
    trial = record.done()[0]
    assert trial.rungs[0].metrics["count"] == 64
    assert trial.rungs[1].metrics["count"] == record.base["count"]
    assert trial.rungs[1].cost["trained_samples"] == round(0.25 * (1797 - 359 - record.base["count"]))


def test_the_folder_of_a_trial_is_an_artefact(finished):
    record, _ = finished
    trial = record.done()[0]
    folder = RunFolder(record.folder).trial(trial.number)
    manifest = artefact.read_manifest(folder)
    assert (manifest.trial, manifest.rung, manifest.study) == (trial.number, 1, "small")
    assert manifest.recipe == trial.recipe
    assert manifest.metrics["accuracy"] == trial.metrics["accuracy"]
    model = artefact.load(folder)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert [line["rung"] for line in read_lines(folder / "metrics.jsonl")] == [0, 1]


def test_weights_of_stopped_trials_are_not_kept(finished):
    record, _ = finished
    for trial in record.trials:
        there = (RunFolder(record.folder).trial(trial.number) / artefact.WEIGHTS).exists()
        assert there or trial.state == "stopped" or trial not in Front.of(record).trials
        assert not (there and trial.state == "stopped")


def test_weights_that_a_dead_driver_left_are_removed(tmp_path):
    study = STUDY | {"objectives": ["accuracy", "flops"]}  # which trials are on the front must not hang on times
    record = launch(study, run_dir=tmp_path)
    places = [RunFolder(record.folder).trial(t.number) / artefact.WEIGHTS for t in record.trials]
    places = [place for place in places if not place.exists()]
    assert places, "two of four trials search, and not all of them end on the front"
    for place in places:
        place.write_bytes(b"left")
    launch(study, run_dir=record.folder)
    assert not any(place.exists() for place in places)


def test_a_model_that_was_not_kept_cannot_be_picked(finished, tmp_path):
    record, _ = finished
    folder = tmp_path / "trials" / "0"
    folder.mkdir(parents=True)
    kept = RunFolder(record.folder).trial(record.done()[0].number)
    (folder / artefact.MANIFEST).write_bytes((kept / artefact.MANIFEST).read_bytes())
    with pytest.raises(BadInput, match="weights of trial 0 were not kept"):
        Pick(trial=record.trials[0], source=tmp_path).save(tmp_path / "model")


def test_events_are_told_and_logged(finished):
    record, heard = finished
    kinds = [type(e).__name__ for e in heard]
    assert kinds.index("Preparing") < kinds.index("StudyStarted") < kinds.index("RungDone")
    assert kinds[-1] == "StudyDone"
    logged = [line["event"] for line in read_lines(RunFolder(record.folder).log)]
    assert logged[-1] == "StudyDone"


def test_launching_again_does_nothing_again(finished):
    record, _ = finished
    heard: list[events.Event] = []
    again = launch(STUDY, run_dir=record.folder, listen=heard.append)
    assert again.trials == record.trials
    assert [type(e).__name__ for e in heard] == ["StudyStarted", "StudyDone"]


def test_a_rung_whose_result_never_arrived_is_not_trained_twice(finished):
    from autoprune.study.jobs import Job

    record, _ = finished
    trial = record.done()[0]
    job = Job(trial=trial.number, rung=1, recipe=trial.recipe, seed=trial.seed, epochs=0.25, samples=None)
    result = Worker(RunFolder(record.folder)).run(job)
    assert result.cost["trained_samples"] == 0
    assert result.metrics["accuracy"] == trial.metrics["accuracy"]


def test_another_study_in_the_folder_is_refused(finished):
    record, _ = finished
    with pytest.raises(BadInput, match=r"targets was .*another run folder"):
        launch(STUDY | {"targets": [0.4]}, run_dir=record.folder)


def test_a_storage_is_shared_by_name_but_not_by_accident(finished, tmp_path):
    record, _ = finished
    with pytest.raises(BadInput, match="belongs to another run folder"):
        launch(STUDY | {"storage": f"sqlite:///{record.folder}/study.db"}, run_dir=tmp_path)


def test_an_unreachable_target_is_said_before_anything_is_trained(tmp_path):
    heard: list[events.Event] = []
    with pytest.raises(UnreachableTarget, match=r"target flops=0\.001 cannot be met"):
        launch(STUDY | {"targets": [0.001]}, run_dir=tmp_path, listen=heard.append)
    assert not any(isinstance(e, events.Preparing) and "training" in e.detail for e in heard)


def test_preflight_forecasts():
    found = preflight(load(STUDY).config)
    # two baselines at both rungs, half of the two others go up
    assert found.forecast.jobs == (4, 3)
    assert found.forecast.seconds > 0
    assert found.reachable_flops[0] < 0.5
    assert ("criteria", "l1_norm") in found.methods
    assert any(d.name == "allocation" for d in found.dimensions)


def test_channels_and_low_rank_together(tmp_path):
    study = STUDY | {"search_space": "low_rank", "rungs": {"epochs": [0]}, "objectives": ["accuracy", "flops"]}
    record = launch(study | {"budget": {"trials": 8}, "sampler": {"name": "random"}}, run_dir=tmp_path)
    assert {t.state for t in record.trials} == {"done"}
    assert any(t.rungs[0].amounts["ranks"] for t in record.trials)
    assert all(t.metrics["flops_fraction"] <= 0.5 for t in record.trials)
