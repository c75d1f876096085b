"""`measure` on a run and on an artefact; what it records and refuses. Times themselves are not looked at."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from .conftest import Run


def test_a_run_is_measured_and_its_front_shows_it(run: Run, finished: Path) -> None:
    front = json.loads(run("front", finished, "--json").stdout)["front"]
    before = {path: path.read_bytes() for path in (finished / "trials").rglob("*") if path.is_file()}
    said = run("measure", finished, "--trial", front[0]["trial"], "--json")
    assert said.exit_code == 0, said.output
    (row,) = json.loads(said.stdout)
    assert (row["trial"], row["precision"]) == (front[0]["trial"], "float32")
    assert row["flops_fraction"] == pytest.approx(front[0]["flops_fraction"])
    assert row["own"]["calls"] >= 50
    assert row["speed_up"]["low"] <= row["speed_up"]["value"] <= row["speed_up"]["high"]
    assert before == {path: path.read_bytes() for path in (finished / "trials").rglob("*") if path.is_file()}
    shown = json.loads(run("front", finished, "--json").stdout)
    assert [one["trial"] for one in shown["measured"]] == [front[0]["trial"]]
    assert "speed-up" in run("front", finished).stdout
    (finished / "measured.jsonl").unlink()


def test_an_artefact_is_measured_with_its_int8_file(run: Run, picked: Path) -> None:
    said = run("measure", picked, "--backend", "onnxruntime", "--quantise", "int8_dynamic", "--batch-size", 2)
    assert said.exit_code == 0, said.output
    assert "Measured: onnxruntime, batch 2, 1 thread, float32" in said.stdout
    assert "Measured: onnxruntime, batch 2, 1 thread, int8_dynamic" in said.stdout
    (picked / "measured.jsonl").unlink()


def test_an_artefact_is_exported_as_an_int8_file(run: Run, picked: Path) -> None:
    said = run("export", picked, "--quantise", "int8_static", "--json")
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    assert (picked / "model.int8.onnx").stat().st_size == found["file_bytes"] < found["float_file_bytes"]
    assert (found["split"], found["method"]["name"]) == ("test", "int8_static")
    assert found["accuracy"] == pytest.approx(found["float_accuracy"], abs=0.05)
    (picked / "model.int8.onnx").unlink()


def test_an_artefact_is_certified(run: Run, picked: Path) -> None:
    said = run("evaluate", picked, "--samples", 10, "--certify", 0.0005, "--json")
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)["certified"]
    assert (found["split"], found["count"], found["epsilon"]) == ("test", 200, 0.0005)
    assert found["certified"] <= found["attacked"] <= found["clean"]
    said = run("evaluate", picked, "--samples", 10, "--split", "validation", "--certify", 0)
    (row,) = (line.split() for line in said.stdout.splitlines() if line.strip().startswith("certified"))
    (clean,) = (line.split() for line in said.stdout.splitlines() if line.strip().startswith("clean"))
    assert row[-2:] == clean[-2:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--backend", "tensorrt"), "no back end named 'tensorrt'"),
        (("--quantise", "int8_static"), "add --backend onnxruntime"),
        (("--trial", "0"), "is an artefact, which has no trials"),
        (("--batch-size", "100000"), "--batch-size 100000 is more than the"),
    ],
)
def test_bad_input_of_measure(run: Run, picked: Path, arguments: tuple[str, ...], message: str) -> None:
    said = run("measure", picked, *arguments)
    assert said.exit_code == 2
    assert message in said.stderr
    assert not (picked / "measured.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--quantise", "int8"), "no quantisation method named 'int8'"),
        (("--quantise", "int8_static", "--format", "pt2"), "writes ONNX files only"),
        (("--quantise", "int8_static", "--input-shape", "1x8x8"), "leave out --input-shape"),
    ],
)
def test_bad_input_of_a_quantised_export(run: Run, picked: Path, arguments: tuple[str, ...], message: str) -> None:
    said = run("export", picked, *arguments)
    assert said.exit_code == 2
    assert message in said.stderr


def test_missing_packages_are_told_with_status_two(run: Run, picked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if "onnx" in name else find(name, *a))
    for arguments in (("measure", picked, "--backend", "onnxruntime"), ("export", picked, "--quantise", "int8_static")):
        said = run(*arguments)
        assert said.exit_code == 2
        assert "autoprune[export]" in said.stderr
