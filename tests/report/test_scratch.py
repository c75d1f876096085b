from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from autoprune.errors import BadInput
from autoprune.files import append_line
from autoprune.report import html, provenance, scratch, tables
from autoprune.report.front import Front
from autoprune.study.records import StudyRecord

from .conftest import example_trials, study


def line(
    trial: int, arm: str, seed: int, test: float | None, epochs: float = 12.0, accuracy: float = 0.9
) -> dict[str, object]:
    return {
        "trial": trial, "arm": arm, "seed": seed, "epochs": epochs, "trained_samples": 1000,
        "training_flops": 3e9, "accuracy": accuracy, "test_accuracy": test,
    }  # fmt: skip


@pytest.fixture
def recorded(tmp_path: Path) -> Front:
    """A front whose trial 2 was trained from scratch, trial 4 with one arm and no test split."""
    for seed, test in enumerate((0.93, 0.95, 0.97)):
        append_line(tmp_path / "scratch.jsonl", line(2, "b", seed, test))
        append_line(tmp_path / "scratch.jsonl", line(2, "e", seed, test - 0.02))
        append_line(tmp_path / "scratch.jsonl", line(2, "b", seed, 0.1, epochs=3.0))
    append_line(tmp_path / "scratch.jsonl", line(4, "b", 0, None, accuracy=0.85))
    return Front.of(study(example_trials(), tmp_path))


def test_rows_compare_on_the_same_split_and_say_what_was_not_trained(recorded: Front) -> None:
    by_trial = {row["trial"]: row for row in scratch.rows(recorded.record.folder, recorded.trials)}
    two = by_trial[2]
    assert (two["split"], two["finetuned"]) == ("test", 0.94)
    assert (two["scratch_b"], two["scratch_e"]) == (pytest.approx(0.95), pytest.approx(0.93))
    assert two["scratch_b_sd"] == pytest.approx(0.02)
    assert two["weight_value"] == pytest.approx(-0.01)
    four = by_trial[4]
    assert (four["split"], four["finetuned"], four["scratch_b"]) == ("validation", 0.88, 0.85)
    assert four["scratch_e"] is None
    assert by_trial[7]["weight_value"] is None


def test_a_model_without_a_scratch_baseline_is_marked(recorded: Front) -> None:
    said = io.StringIO()
    tables.print_front(Console(file=said, width=160), recorded)
    line_of = {row.split()[1]: row for row in said.getvalue().split("From scratch")[1].splitlines() if "trial" in row}
    assert line_of["7"].count("not trained") == 2
    assert "95.00 % ± 2.00 (n=3)" in line_of["2"]
    assert "not trained" not in line_of["2"]


def test_the_report_shows_them_next_to_the_finetuned_ones(recorded: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "group_sizes", lambda folder: {"conv1": 16, "layer1.conv1": 12})
    section = html.render(recorded).split("<h2>From scratch</h2>")[1].split("</section>")[0]
    row_of = {row.split("</th>")[0].split()[-1]: row for row in section.split("<tr>")[2:]}
    assert "<td>94.00 %</td>" in row_of["2"]
    assert "<td>95.00 % ± 2.00 (n=3)</td>" in row_of["2"]
    assert "<td>-1.00 points</td>" in row_of["2"] or "<td>-1.00</td>" in row_of["2"]
    assert row_of["7"].count("not trained") == 2


def test_without_any_the_front_says_nothing_of_it(record: StudyRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "group_sizes", lambda folder: {"conv1": 16, "layer1.conv1": 12})
    said = io.StringIO()
    tables.print_front(Console(file=said, width=160), Front.of(record))
    assert "scratch" not in said.getvalue()
    assert "<h2>From scratch" not in html.render(Front.of(record))
    assert all(row["scratch_b"] is None for row in Front.of(record).plain()["scratch"])


def test_a_base_model_with_weights_needs_the_epochs_said() -> None:
    config = study(()).config
    given = config.model_copy(update={"model": config.model.model_copy(update={"weights": "some.safetensors"})})
    with pytest.raises(BadInput, match="it is not known how long it was trained"):
        scratch._recipe(given, "b", None)
    assert scratch._recipe(given, "b", 5.0).epochs == 5.0
    assert scratch._recipe(config, "e", None).epochs == config.train_base.epochs
    assert math.isclose(scratch._recipe(config, "e", 2.0).recovery[1].lr, config.train_base.lr)  # type: ignore[attr-defined]
