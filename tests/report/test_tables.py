"""Numbers in words, and the tables made of them."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from autoprune.report import tables
from autoprune.report.front import Front
from autoprune.study.records import StudyRecord

from .conftest import trial


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (512, "512"), (999.6, "1k"), (77_754, "77.8k"), (1_527_424, "1.53M"), (4.089e9, "4.09G"),
     (123_456_789, "123M"), (999_900, "1M"), (2.5e13, "25000G"), (float("nan"), "-")],
)  # fmt: skip
def test_human(value: float, expected: str) -> None:
    assert tables.human(value) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (59.96, "1 min 00 s"), (75, "1 min 15 s"), (3599.7, "1 h 00 min"),
     (3725, "1 h 02 min")],
)  # fmt: skip
def test_duration(seconds: float, expected: str) -> None:
    assert tables.duration(seconds) == expected


def printed(show: object, *arguments: object) -> str:
    out = io.StringIO()
    show(Console(file=out, width=160), *arguments)  # type: ignore[operator]
    return out.getvalue()


def test_front_table(record: StudyRecord) -> None:
    text = printed(tables.print_front, Front.of(record))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "base model 1.53M 100 % 77.8k 100 % 98.00 % 97.00 %" in lines
    assert "~ trial 2 748k 49.0 % 38.1k 49.0 % 95.00 % +5.00 94.00 % 60.0 > 90.0 > 95.0" in lines
    assert "uniform_l1 (1) 382k 25.0 % 19.4k 25.0 % 80.00 % - 79.00 % 30.0 > 60.0 > 80.0" in lines
    assert "* trial 4 367k 24.0 % 18.7k 24.0 % 88.00 % +8.00 86.00 % 50.0 > 80.0 > 88.0" in lines
    assert "\x1b[" not in text


def test_best_by_target(record: StudyRecord) -> None:
    text = " ".join(printed(tables.print_best_by_target, Front.of(record)).split())
    assert "flops=0.5 trial 2 748k 95.00 % +5.00 flops=0.25 trial 4 367k 88.00 % +8.00" in text


def test_counts_leave_duplicates_out(record: StudyRecord) -> None:
    counts = tables.counts_by_state(record.trials)
    assert counts == {"done": 5, "stopped": 1, "failed": 1, "running": 1, "waiting": 0}


def test_failures(record: StudyRecord) -> None:
    assert "the training loss became nan" in printed(tables.print_failures, record.trials)
    assert printed(tables.print_failures, record.trials[:2]) == ""


def test_sparsity_has_columns_only_where_there_is_any(record: StudyRecord) -> None:
    assert "sparse" not in printed(tables.print_front, Front.of(record))
    sparse = {"sparsity": 0.9, "sparse_flops": 152_742.0, "sparse_flops_fraction": 0.1}
    trials = (*record.trials, trial(9, (0.5, 0.8, 0.97), 0.5, **{"metrics": sparse}))
    text = printed(tables.print_front, Front.of(dataclasses.replace(record, trials=trials)))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "~ trial 9 764k 50.0 % 153k 10.0 % 90.0 % 38.9k 50.0 % 97.00 % +7.00 - 50.0 > 80.0 > 97.0" in lines
    assert any(line.startswith("base model 1.53M 100 % - 100.0 % 0.0 % 77.8k") for line in lines)
    assert "sparse FLOPs are those left were products with zero weights skipped" in " ".join(text.split())
