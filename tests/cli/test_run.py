"""Commands on a finished study."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result

from .conftest import TINY, Run


def test_launch_ends_with_table_report_and_next_step(launched: tuple[Path, Result]) -> None:
    folder, said = launched
    assert said.exit_code == 0
    assert "[4/4]" in said.stdout
    assert "uniform_l1" in said.stdout
    assert "base model" in said.stdout
    assert f"Report: {folder / 'report.html'}" in said.stdout
    assert f"Next: autoprune pick {folder} --target-flops 0.5 --out digits-model" in said.stdout


def test_launch_again_repeats_nothing(finished: Path, run: Run) -> None:
    trained = sorted((finished / "trials").glob("*/metrics.jsonl"))
    before = [p.read_text() for p in trained]
    said = run("launch", "digits", "--run-dir", finished, *TINY, "--json")
    assert said.exit_code == 0
    assert json.loads(said.stdout)["report"] == str(finished / "report.html")
    assert [p.read_text() for p in trained] == before


def test_launch_with_other_settings_is_refused(finished: Path, run: Run) -> None:
    said = run("launch", "digits", "--run-dir", finished, *TINY, "--seed", 5)
    assert said.exit_code == 2
    assert "seed was 0, now 5" in said.stderr


def test_status(finished: Path, run: Run) -> None:
    said = run("status", finished)
    assert said.exit_code == 0
    assert "4 of 4 trials are over" in said.stdout
    plain = json.loads(run("status", finished, "--json").stdout)
    assert sum(plain["trials"].values()) == 4
    assert plain["best"]["flops=0.5"]["flops_fraction"] <= 0.5
    assert plain["rungs"][0]["reached"] == 4
    assert plain["disk_bytes"] == sum(path.stat().st_size for path in finished.rglob("*") if path.is_file())
    assert f"{finished} takes " in said.stdout


def test_front(finished: Path, run: Run) -> None:
    assert "* " in run("front", finished).stdout
    plain = json.loads(run("front", finished, "--json").stdout)
    assert plain["front"]
    assert {b["baseline"] for b in plain["baselines"]} == {"uniform_l1", "global_taylor"}
    assert all(isinstance(t["flops"], int) and t["test_accuracy"] > 0.1 for t in plain["front"])
    rows = list(csv.DictReader(io.StringIO(run("front", finished, "--csv").stdout)))
    assert {int(r["trial"]) for r in rows if r["on_front"] == "True"} == {t["trial"] for t in plain["front"]}


def test_run_is_found_by_name(finished: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(finished)
    monkeypatch.chdir(tmp_path)
    assert run("status", "mine").exit_code == 0


def test_report(finished: Path, run: Run, tmp_path: Path) -> None:
    said = run("report", finished, "--out", tmp_path / "r.html", "--json")
    assert json.loads(said.stdout) == {"report": str(tmp_path / "r.html")}
    assert "<h1>digits</h1>" in (tmp_path / "r.html").read_text()


def test_pick_checks_in_a_fresh_process(
    finished: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = run("pick", finished, "--knee", "--out", "model", "--json")
    assert said.exit_code == 0, said.output
    plain = json.loads(said.stdout)
    assert plain["checked"] is True
    assert plain["flops_fraction"] <= 0.5
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "autoprune.json",
        "model.safetensors",
        "recipe.yaml",
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_pick_that_disagrees_with_the_record_leaves_nothing(finished: Path, run: Run, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    chosen = json.loads(run("front", copy, "--json").stdout)["front"][0]["trial"]
    other = next(p for p in (copy / "trials").iterdir() if p.name != str(chosen))
    shutil.rmtree(copy / "trials" / str(chosen))
    shutil.copytree(other, copy / "trials" / str(chosen))
    said = run("pick", copy, "--trial", chosen, "--out", tmp_path / "model")
    assert said.exit_code == 1
    assert "in a fresh process, but" in " ".join(said.stderr.split())
    assert not (tmp_path / "model").exists()


def test_evaluate(picked: Path, run: Run) -> None:
    said = run("evaluate", picked)
    assert said.exit_code == 0
    assert "accuracy (test, 359 samples)" in said.stdout
    plain = json.loads(run("evaluate", picked, "--split", "validation", "--latency", "--json").stdout)
    assert plain["validation"]["accuracy"] == plain["recorded"]["accuracy"]
    assert plain["flops"] == plain["recorded"]["flops"]
    assert plain["same_data"] is True
    assert plain["latency_ms"] > 0
    assert "test" not in plain


def test_evaluate_on_changed_data_says_so(picked: Path, run: Run) -> None:
    said = run("evaluate", picked, "--samples", 20, "--set", "data.validation_fraction=0.3")
    assert said.exit_code == 0
    assert "20 samples" in said.stdout
    assert "fingerprint differs" in said.stderr


def test_export(picked: Path, run: Run) -> None:
    said = run("export", picked, "--format", "pt2")
    assert said.exit_code == 0, said.output
    assert "weights of the base model" in said.stdout
    plain = json.loads(run("export", picked, "--format", "onnx", "--input-shape", "1x8x8", "--json").stdout)
    assert Path(plain["path"]).stat().st_size == plain["file_bytes"]
    assert plain["batch_sizes"] == [1, 3]


def test_compress_with_a_preset(run: Run, tmp_path: Path) -> None:
    said = run(
        "compress", "digits", "--preset", "l1_filters", "--target-flops", 0.6, "--epochs", 0,
        "--out", tmp_path / "small", "--set", "train_base.epochs=0.2", "--json",
    )  # fmt: skip
    assert said.exit_code == 0, said.output
    plain = json.loads(said.stdout)
    assert 0.5 < plain["metrics"]["flops_fraction"] <= 0.6
    assert plain["recipe"]["preset"] == "l1_filters"
    assert run("evaluate", tmp_path / "small").exit_code == 0


def test_compress_with_a_recipe_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("criterion: l2_norm\nrecovery: [bn_reestimation]\nepochs: 0\n")
    said = run(
        "compress", "digits", "--recipe", tmp_path / "r.yaml", "--out", tmp_path / "small",
        "--set", "train_base.epochs=0.2",
    )  # fmt: skip
    assert said.exit_code == 0, said.output
    assert f"Next: autoprune evaluate {tmp_path / 'small'}" in said.stdout


def test_command_as_a_process(finished: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "autoprune", "front", str(finished), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["study"] == "digits"
    assert done.stderr == ""
