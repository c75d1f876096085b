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
    other = next(p for p in (copy / "trials").glob("*") if p.name != str(chosen) and (p / "model.safetensors").exists())
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


def test_compress_by_depth_takes_the_nearest_block_count_and_says_so(run: Run, tmp_path: Path) -> None:
    flags = ("--epochs", 0, "--set", "train_base.epochs=0.2")
    said = run(
        "compress",
        "digits",
        "--preset",
        "sr_init",
        "--target-flops",
        0.5,
        "--out",
        tmp_path / "small",
        "--json",
        *flags,
    )
    assert said.exit_code == 0, said.output
    plain = json.loads(said.stdout)
    # the only block without a projection has 589,824 of the 1,527,040 FLOPs
    assert plain["metrics"]["flops"] == 1_527_040 - 589_824
    assert "skips 1 of the 1 blocks that may be skipped: layer1" in plain["notes"][0]
    assert "flops_fraction 0.5, is not met: it is the nearest block count" in plain["notes"][0]
    assert json.loads(run("evaluate", tmp_path / "small", "--json").stdout)["flops"] == 937_216
    exported = run("export", tmp_path / "small", "--format", "onnx", "--json")
    assert exported.exit_code == 0, exported.output
    (tmp_path / "r.yaml").write_text("criterion: null\ndepth: {name: sr_init, allow_first: true}\n")
    refused = run("compress", "digits", "--recipe", tmp_path / "r.yaml", "--out", tmp_path / "no", *flags)
    assert refused.exit_code == 2
    assert "the reachable range is 0.614 to 1 of the FLOPs" in refused.stderr
    assert not (tmp_path / "no").exists()


def test_study_over_depth_and_channels(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "deep"
    space = {
        "depth": {"name": "random", "share": {"low": 0.7, "high": 1.0}, "allow_first": True},
        "criterion": "l1_norm",
    }
    said = run(
        "launch", "digits", "--run-dir", folder, *TINY, "--set", f"search_space={json.dumps(space)}",
        "--set", "baselines=[]", "--target-flops", 0.4,
    )  # fmt: skip
    assert said.exit_code == 0, said.output
    assert json.loads(run("status", folder, "--json").stdout)["trials"]["failed"] == 0
    # the only block, which holds layer1.conv1, is 39 % of the FLOPs: every recipe takes it
    assert "0 of 16" in (folder / "report.html").read_text()
    for trial in json.loads(run("front", folder, "--json").stdout)["front"]:
        assert 0.37 < trial["flops_fraction"] <= 0.4


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


def test_scratch_trains_the_front_once_and_the_front_shows_it(run: Run, finished: Path) -> None:
    flags = ("--arm", "b", "--seeds", 1, "--epochs", 0.5, "--json")
    said = run("scratch", finished, *flags)
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    shown = json.loads(run("front", finished, "--json").stdout)
    assert [row["trial"] for row in found] == [trial["trial"] for trial in shown["front"]]
    assert all(0 < row["scratch_b"] <= 1 and row["scratch_e"] is None for row in found)
    lines = (finished / "scratch.jsonl").read_text().splitlines()
    again = run("scratch", finished, *flags)
    assert json.loads(again.stdout) == found
    assert (finished / "scratch.jsonl").read_text().splitlines() == lines
    assert "From scratch" in run("front", finished).stdout
    assert run("scratch", finished, "--arm", "x").exit_code == 2


def test_compress_to_a_sparsity(run: Run, tmp_path: Path) -> None:
    quick = ("--set", "train_base.epochs=0.2", "--epochs", 0.1, "--out", tmp_path / "sparse")
    said = run("compress", "digits", "--preset", "snip", "--sparsity", 0.8, *quick)
    assert said.exit_code == 0, said.output
    assert "weights that are zero" in said.stdout
    assert "80.00 %" in said.stdout
    plain = json.loads(run("evaluate", tmp_path / "sparse", "--json").stdout)
    assert plain["sparsity"] == pytest.approx(0.8, abs=1e-4)
    assert plain["sparse_flops"] < 0.6 * plain["flops"]
    exported = run("export", tmp_path / "sparse", "--format", "onnx", "--json")
    assert exported.exit_code == 0, exported.output


def test_a_sparsity_for_a_recipe_without_one_is_bad_input(run: Run, tmp_path: Path) -> None:
    said = run("compress", "digits", "--preset", "l1_filters", "--sparsity", 0.9, "--out", tmp_path / "x")
    assert said.exit_code == 2
    assert "the recipe l1_filters zeroes no single weights" in " ".join(said.stderr.split())


def test_dense_flops_as_the_target_of_a_sparse_recipe_are_bad_input(run: Run, tmp_path: Path) -> None:
    said = run("compress", "digits", "--preset", "snip", "--target-flops", 0.5, "--out", tmp_path / "x")
    assert said.exit_code == 2
    assert "its target must be flops_fraction 1" in " ".join(said.stderr.split())
