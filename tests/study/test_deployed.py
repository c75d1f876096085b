"""Studies that minimise size, memory or energy: one artefact for accuracy and cost, through polishing and picking."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from autoprune import artefact
from autoprune.errors import BadInput
from autoprune.export import QUANTISED
from autoprune.programs import OnnxModel
from autoprune.report import html, tables
from autoprune.report.front import Front
from autoprune.report.pick import Pick
from autoprune.report.quality import axis_of, float_accuracy
from autoprune.study.config import load
from autoprune.study.launch import launch
from autoprune.study.polish import polish
from autoprune.study.records import StudyRecord
from autoprune.study.run_folder import RunFolder
from autoprune.study.worker import load_bench
from autoprune.tasks import evaluate

STUDY: dict[str, Any] = {
    "name": "deployed",
    "model": {"name": "digits_resnet"},
    "train_base": {"epochs": 1},
    "data": {"name": "digits"},
    "targets": [0.5],
    "objectives": ["accuracy", "size"],
    "baselines": [{"preset": "int8", "quantisation": "int8_dynamic"}, {"preset": "float"}],
    "rungs": {"epochs": [0, 0.5], "reduction": 2, "validation_samples": [64, 100]},
    "budget": {"trials": 2},
    "trial": {"evidence_batches": 2, "device": "cpu"},
    "executor": {"name": "inline"},
}


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> StudyRecord:
    return launch(STUDY, run_dir=tmp_path_factory.mktemp("run"))


def accuracy_of(file: Path, record: StudyRecord, split: str, samples: int | None) -> float:
    bench = load_bench(RunFolder(record.folder))
    own = bench.data.validation if split == "validation" else bench.data.test
    assert own is not None
    return evaluate(OnnxModel(file), own, bench.task, 512, limit=samples).accuracy


def test_accuracy_at_every_rung_is_that_of_the_file(record: StudyRecord) -> None:
    small, plain = record.trials
    assert [t.state for t in record.trials] == ["done", "done"]
    for rung in small.rungs:
        assert rung.metrics["accuracy"] == rung.metrics["int8_accuracy"]
        assert rung.metrics["loss"] == rung.metrics["int8_loss"]
        assert rung.metrics["deployed_bytes"] == rung.metrics["int8_bytes"]
    for rung in plain.rungs:
        assert rung.metrics["accuracy"] == rung.metrics["float_accuracy"]
        assert rung.metrics["deployed_bytes"] == 4 * record_tensors(record, plain.number)
    # the files of the two are of one network's size, in 8 and in 32 bits, names and shapes included
    assert small.metrics["deployed_bytes"] < 0.5 * plain.metrics["deployed_bytes"]
    assert small.metrics["loss"] != small.metrics["float_loss"]
    assert float_accuracy(small) == small.metrics["float_accuracy"]


def record_tensors(record: StudyRecord, number: int) -> int:
    model = artefact.load(RunFolder(record.folder).trial(number))
    return sum(t.numel() for t in (*model.parameters(), *model.buffers()))


def test_the_base_model_has_the_same_columns(record: StudyRecord) -> None:
    base = record.base
    assert base["float_accuracy"] == base["accuracy"]
    assert base["deployed_bytes_fraction"] == base["deployed_energy_uj_fraction"] == 1
    metrics = record.trials[0].metrics
    for name in ("bytes", "activation_bytes", "energy_uj"):
        whole = metrics[f"deployed_{name}"] / metrics[f"deployed_{name}_fraction"]
        assert whole == pytest.approx(base[f"deployed_{name}"])


def test_the_file_is_kept_and_is_what_the_test_split_saw(record: StudyRecord) -> None:
    small, plain = record.trials
    run = RunFolder(record.folder)
    file = run.trial(small.number) / QUANTISED
    assert accuracy_of(file, record, "validation", 100) == small.metrics["accuracy"]
    assert small.test is not None
    assert accuracy_of(file, record, "test", None) == small.test["accuracy"]
    assert "float_accuracy" in small.test
    assert not (run.trial(plain.number) / QUANTISED).exists()


def test_a_picked_model_brings_its_file(record: StudyRecord, tmp_path: Path) -> None:
    # the check in a fresh process compares the float model with float_accuracy
    folder = Pick(trial=record.trials[0], source=record.folder).save(tmp_path / "picked")
    kept = RunFolder(record.folder).trial(0) / QUANTISED
    assert (folder / QUANTISED).read_bytes() == kept.read_bytes()
    assert artefact.read_manifest(folder).metrics["accuracy"] == record.trials[0].metrics["int8_accuracy"]


def test_front_table_page_and_csv_have_the_columns(record: StudyRecord) -> None:
    front = Front.of(record)
    assert axis_of(front.objectives) == "deployed_bytes_fraction"
    out = io.StringIO()
    tables.print_front(Console(file=out, width=260), front)
    text = " ".join(out.getvalue().split())
    # the terminal has the costs that are objectives, the page all of them
    assert "test file size by rung" in text
    assert "Accuracies are those of what is deployed (file)" in text
    assert "all other accuracies are float32" not in text
    page = html.render(front)
    assert '<th scope="col">energy</th>' in page
    assert "size of what is deployed, % of the base model" in page
    rows = {one["trial"]: one for one in json.loads(json.dumps(front.plain()))["baselines"]}
    assert rows[0]["deployed_bytes"] == record.trials[0].metrics["deployed_bytes"]
    assert rows[0]["float_accuracy"] == record.trials[0].metrics["float_accuracy"]
    assert "deployed_energy_uj" in front.csv().splitlines()[0]


@pytest.mark.parametrize("other", ["latency", "certified_error"])
def test_costs_of_the_float_model_do_not_go_with_those_of_the_file(other: str) -> None:
    study = STUDY | {"objectives": ["accuracy", "size", other], "trial": {"certified_epsilon": 0.01}}
    with pytest.raises(BadInput, match=f"{other} of the float32 model in PyTorch"):
        load(study)


def test_polishing_makes_the_file_anew(record: StudyRecord) -> None:
    small = record.trials[0]
    after, failures = polish(RunFolder(record.folder), [small], epochs=0.5)
    assert not failures
    (found,) = after.trials[0].polished
    assert found.metrics["accuracy"] == found.metrics["int8_accuracy"]
    assert found.metrics["loss"] != small.metrics["loss"]
    file = RunFolder(record.folder).polished(small.number, 0) / QUANTISED
    assert accuracy_of(file, record, "validation", None) == found.metrics["accuracy"]
    assert accuracy_of(file, record, "test", None) == found.test["accuracy"]
