from __future__ import annotations

import io
import math
from dataclasses import replace

import pytest
from rich.console import Console

from autoprune.report import polished
from autoprune.report.front import Front
from autoprune.report.html import render
from autoprune.report.tables import polished_cells, print_front
from autoprune.study.records import PolishRecord

from .conftest import study, trial


def training(repeat, accuracy, epochs=10.0, test=0.9):
    metrics = {"accuracy": accuracy, "count": 287.0, "flops": 763_712.0, "params": 1.0}
    return PolishRecord(
        repeat=repeat, epochs=epochs, metrics=metrics, test={"accuracy": test, "count": 359.0}, cost={"seconds": 1.0}
    )


def trained(*trainings):
    return replace(trial(1, (0.90,), 0.5), polished=trainings)


def test_mean_and_interval_by_hand():
    # s = 0.01, n = 3, t(0.975, 2) = 4.3027: 4.3027 * 0.01 / sqrt(3) = 0.024842
    mean = polished.mean_of([0.94, 0.95, 0.96])
    assert (mean.value, mean.count) == (pytest.approx(0.95), 3)
    assert mean.half_width == pytest.approx(0.024842, abs=1e-6)
    assert str(mean) == "95.00 ± 2.48 %"


def test_one_value_has_no_interval_and_none_no_mean():
    mean = polished.mean_of([0.94])
    assert math.isnan(mean.half_width)
    assert str(mean) == "94.00 %"
    assert polished.mean_of([]) is None


def test_trainings_of_another_length_are_not_mixed_in():
    one = trained(training(0, 0.95, epochs=20.0), training(1, 0.91, epochs=10.0), training(2, 0.97, epochs=20.0))
    assert polished.validation(one).value == pytest.approx(0.96)
    assert polished.plain(one)["epochs"] == 20.0


def test_the_polished_model_is_the_best_repeat_by_validation():
    found, which = polished.as_polished(trained(training(0, 0.95), training(1, 0.96, test=0.8)))
    assert (which.repeat, found.metrics["accuracy"], found.test["accuracy"]) == (1, 0.96, 0.8)
    assert polished.as_polished(trial(1, (0.9,), 0.5)) is None


def test_the_int8_file_is_that_of_the_polished_models():
    def more(one, accuracy):
        return replace(one, metrics={**one.metrics, "int8_accuracy": accuracy, "int8_bytes": 2048.0})

    both = trained(more(training(0, 0.95), 0.90), more(training(1, 0.97), 0.94))
    before = replace(both.rungs[-1], metrics={**both.rungs[-1].metrics, "int8_accuracy": 0.1, "int8_bytes": 1.0})
    front = Front.of(study((replace(both, rungs=(before,)),)))
    headings, (row,) = polished_cells(front)
    assert headings == ["model", "epochs", "trainings", "validation", "test", "int8", "int8 size"]
    assert row[2:] == ["2", "96.00 ± 12.71 %", "90.00 ± 0.00 %", "92.00 %", "2 KiB"]
    assert polished.plain(both)["int8_accuracy"] == pytest.approx(0.92)
    # of trainings that were recorded without it nothing is said
    partly = trained(more(training(0, 0.95), 0.90), training(1, 0.97))
    assert "int8_accuracy" not in polished.averaged(partly)


def test_a_pick_takes_the_polished_model_unless_told_not_to(tmp_path):
    front = Front.of(study((trained(training(0, 0.95), training(1, 0.96)),), tmp_path))
    assert front.pick(trial=1).artefact == tmp_path / "polished" / "1-1"
    assert front.pick(trial=1).trial.metrics["accuracy"] == 0.96
    assert front.pick(trial=1, polish=False).artefact == tmp_path / "trials" / "1"


def test_front_and_report_show_it():
    front = Front.of(study((trained(training(0, 0.94), training(1, 0.95), training(2, 0.96)), trial(2, (0.5,), 0.2))))
    text = io.StringIO()
    print_front(Console(file=text, width=200), front)
    lines = [" ".join(line.split()) for line in text.getvalue().splitlines()]
    assert "trial 1 10 3 95.00 ± 2.48 % 90.00 ± 0.00 %" in lines
    assert "95.00 ± 2.48 %" in render(front)
    assert [one["polished"] is None for one in front.plain()["front"]] == [False, True]


def test_without_polishing_nothing_is_said_of_it():
    front = Front.of(study((trial(1, (0.9,), 0.5),)))
    assert "polishing" not in render(front)
