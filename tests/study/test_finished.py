"""What studies measure of finished models: the int8 file that a recipe asks for, and certified accuracy."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
from rich.console import Console

from autoprune.errors import BadInput
from autoprune.report import html, tables
from autoprune.report.front import Front
from autoprune.study.config import load
from autoprune.study.launch import launch
from autoprune.study.polish import polish
from autoprune.study.records import StudyRecord
from autoprune.study.run_folder import RunFolder

STUDY: dict[str, Any] = {
    "name": "finished",
    "model": {"name": "digits_resnet"},
    "train_base": {"epochs": 1},
    "data": {"name": "digits"},
    "targets": [0.5],
    "objectives": ["accuracy", "flops", "certified_error"],
    "baselines": [{"preset": "int8", "quantisation": "int8_dynamic"}, {"preset": "float"}],
    "rungs": {"epochs": [0, 0.1], "reduction": 2, "validation_samples": [64, 100]},
    "budget": {"trials": 2},
    "trial": {"evidence_batches": 2, "device": "cpu", "certified_epsilon": 0.0005, "certified_samples": 16},
    "executor": {"name": "inline"},
}


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> StudyRecord:
    return launch(STUDY, run_dir=tmp_path_factory.mktemp("run"))


def test_every_rung_is_certified_where_that_is_an_objective(record: StudyRecord) -> None:
    assert [t.state for t in record.trials] == ["done", "done"]
    for metrics in (record.base, *(rung.metrics for t in record.trials for rung in t.rungs)):
        assert metrics["certified_error"] == pytest.approx(1 - metrics["certified_accuracy"])
        assert metrics["certified_accuracy"] <= metrics["attacked_accuracy"] <= metrics["certified_clean_accuracy"]
        assert (metrics["certified_epsilon"], metrics["certified_count"]) == (0.0005, 16)


def test_the_int8_file_stands_beside_the_accuracy_of_the_model(record: StudyRecord) -> None:
    small, plain = record.trials
    assert (small.baseline, plain.baseline) == ("int8", "float")
    assert "int8_accuracy" not in plain.metrics
    # the same cut by the same seed but for the trial's own: accuracies of the float models are on one footing
    assert small.metrics["int8_bytes"] < 0.6 * small.metrics["float_bytes"]
    assert math.isfinite(small.metrics["int8_accuracy"])
    assert small.rungs[0].metrics["count"] == 64


def test_tables_and_page_say_which_is_which(record: StudyRecord) -> None:
    front = Front.of(record)
    out = io.StringIO()
    tables.print_front(Console(file=out, width=220), front)
    text = " ".join(out.getvalue().split())
    for told in ("int8 int8 size certified (0.0005) by rung", "all other accuracies are float32"):
        assert told in text
    page = html.render(front)
    assert '<th scope="col">int8 size</th>' in page
    assert "is proven to stay for all inputs within that epsilon" in page
    rows = {one["trial"]: one for one in front.plain()["baselines"]}
    assert rows[0]["int8_bytes"] == record.trials[0].metrics["int8_bytes"]
    assert "int8_bytes" not in rows[1]
    assert front.csv().splitlines()[0].endswith("certified_epsilon")


def test_polishing_measures_file_and_proof_anew(record: StudyRecord) -> None:
    small = record.trials[0]
    after, failures = polish(RunFolder(record.folder), [small], epochs=1.0)
    assert not failures
    (found,) = after.trials[0].polished
    assert found.metrics["int8_loss"] != small.metrics["int8_loss"]
    assert found.metrics["certified_accuracy"] <= found.metrics["attacked_accuracy"]
    assert "deployed_bytes" not in found.metrics
    picked = Front.of(after).pick(trial=0).trial.metrics
    assert picked["int8_accuracy"] == found.metrics["int8_accuracy"]


def test_the_objective_needs_an_epsilon() -> None:
    with pytest.raises(BadInput, match=r"certified_error needs an epsilon: trial\.certified_epsilon"):
        load(STUDY | {"trial": {}})


def test_other_objectives_certify_only_at_the_top(tmp_path_factory: pytest.TempPathFactory) -> None:
    study = STUDY | {"objectives": ["accuracy", "flops"], "baselines": [{"preset": "float"}], "budget": {"trials": 1}}
    (trial,) = launch(study, run_dir=tmp_path_factory.mktemp("run")).trials
    assert ["certified_accuracy" in rung.metrics for rung in trial.rungs] == [False, True]
