"""Measured speed-ups in a run folder, in the front, in tables and in the page."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from autoprune.errors import BadInput, MissingDependency, UnknownName
from autoprune.files import append_line
from autoprune.report import html, speed, tables
from autoprune.report.front import Front
from autoprune.report.speed_tables import print_speed

from .conftest import example_trials, study


def line(trial: int, value: float, low: float, high: float, **changes: Any) -> dict[str, Any]:
    """Return a line of measured.jsonl: half of the FLOPs, so many times as fast."""
    timed = {"median_ms": 2.0, "p10_ms": 1.9, "p90_ms": 2.1, "iqr_ms": 0.1, "calls": 50, "noisy": False}
    resources = {
        "flops": 500, "params": 10, "weight_bytes": 40960, "peak_activation_bytes": 2048, "energy_proxy_uj": 1.5,
    }  # fmt: skip
    setting = {
        "backend": "eager", "batch_size": 1, "threads": 1, "device": "cpu", "input_shape": [1, 8, 8],
        "machine": "a processor", "versions": {"torch": "2.15"},
    }  # fmt: skip
    return {
        "trial": trial,
        "setting": setting | changes.pop("setting", {}),
        "precision": "float32",
        "own": timed | changes.pop("own", {}),
        "base": timed,
        "speed_up": {"value": value, "low": low, "high": high},
        "resources": resources,
        "base_resources": resources | {"flops": 1000},
        "accuracy": None,
        "file_bytes": None,
        "at": "2026-01-01T00:00:00",
    } | changes


@pytest.fixture
def measured(tmp_path: Path) -> Front:
    """A front with trials 2, 7 and 4, of which 2 is faster, 4 is not; 7 was not measured."""
    append_line(tmp_path / speed.FILE, line(2, 9.0, 8.0, 10.0))
    append_line(tmp_path / speed.FILE, line(2, 1.8, 1.7, 1.9))
    append_line(tmp_path / speed.FILE, line(4, 1.02, 0.97, 1.06, own={"noisy": True}))
    int8 = {"precision": "int8_static", "accuracy": 0.87, "file_bytes": 10240}
    ort = {"setting": {"backend": "onnxruntime"}, "at": "2025-12-31T00:00:00"}
    append_line(tmp_path / speed.FILE, line(4, 2.5, 2.4, 2.6, **int8, **ort))
    return Front.of(study(example_trials(), tmp_path))


def test_the_newest_of_equal_measurements_counts(measured: Front) -> None:
    rows = {(row.trial, row.measured.precision): row.measured for row in measured.speeds}
    assert set(rows) == {(2, "float32"), (4, "float32"), (4, "int8_static")}
    assert rows[2, "float32"].speed_up.value == 1.8


def test_a_column_holds_one_setting_and_float_only(measured: Front) -> None:
    assert {number: one.setting.backend for number, one in measured.speed_of.items()} == {2: "eager", 4: "eager"}


def test_the_table_has_flops_and_speed_side_by_side_and_flags_what_gained_nothing(measured: Front) -> None:
    out = io.StringIO()
    tables.print_front(Console(file=out, width=200), measured)
    rows = [" ".join(row.split()) for row in out.getvalue().splitlines() if "trial" in row]
    of = {row.split()[2]: row for row in rows if row[0] in "*~"}
    assert "49.0 % 1.80x (1.70 - 1.90)" in of["2"]
    assert "1.02x (0.97 - 1.06) !~" in of["4"]
    assert "x (" not in of["7"]
    assert "! FLOPs fell and the time did not" in out.getvalue()
    assert "Here: eager, batch 1, 1 thread, float32." in " ".join(out.getvalue().split())


def test_every_setting_has_a_table_of_its_own(measured: Front) -> None:
    out = io.StringIO()
    print_speed(Console(file=out, width=200), measured.speeds)
    first, second = out.getvalue().split("Measured: ")[1:]
    assert first.startswith("eager, batch 1, 1 thread, float32")
    assert second.startswith("onnxruntime, batch 1, 1 thread, int8_static")
    (row,) = (r for r in second.splitlines() if "trial 4" in r)
    for cell in ("2.00x", "2.50x (2.40 - 2.60)", "2.00 ms", "0.100 ms", "50", "2 KiB", "1.5 uJ", "10 KiB", "87.00 %"):
        assert cell in row
    assert "2.50x" not in first
    assert "40 KiB" in first


def test_other_machines_have_tables_of_their_own(measured: Front) -> None:
    append_line(measured.record.folder / speed.FILE, line(7, 1.5, 1.4, 1.6, setting={"machine": "another"}))
    rows = speed.read_rows(measured.record.folder)
    assert [[row.trial for row in own] for own in speed.by_setting(rows)] == [[2, 4], [4], [7]]


def test_json_and_csv_have_it_too(measured: Front) -> None:
    plain = json.loads(json.dumps(measured.plain()))["measured"]
    by = {(row["trial"], row["precision"]): row for row in plain}
    assert [by[n, "float32"]["gained_nothing"] for n in (2, 4)] == [False, True]
    assert by[4, "float32"]["flops_fraction"] == 0.5
    rows = {row["trial"]: row for row in csv.DictReader(io.StringIO(measured.csv()))}
    assert (rows["2"]["speed_up"], rows["2"]["speed_setting"]) == ("1.8", "eager, batch 1, 1 thread, float32")
    assert rows["7"]["speed_up"] == ""


def test_the_page_has_a_section_and_a_column(measured: Front) -> None:
    page = html.render(measured)
    assert "<h2>Measured speed</h2>" in page
    assert "1.02x (0.97 - 1.06) !~" in page
    assert page.index('<th scope="col">speed-up</th>') < page.index("<h2>Measured speed</h2>")
    assert "energy: a proxy" in page


def test_without_measurements_nothing_is_said() -> None:
    front = Front.of(study(example_trials()))
    assert front.speeds == ()
    assert "speed-up" not in html.render(front).replace(html._plotly(), "")
    assert "speed-up" not in [c.header for c in tables.front_table(front).columns]


def test_what_cannot_be_measured_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownName, match="no back end named 'tensorrt'"):
        speed.Wanted(backends=("tensorrt",)).check()
    with pytest.raises(BadInput, match="add --backend onnxruntime"):
        speed.Wanted(quantise="int8_static").check()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match="measuring by onnxruntime needs"):
        speed.Wanted(backends=("eager", "onnxruntime")).check()
