"""Asking a study for another target, and starting another study from it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import yaml

from autoprune import artefact
from autoprune.recipe import Recipe

from .conftest import Run, call

TABLE = Path(__file__).parents[2] / "benchmarks" / "tables" / "digits.jsonl.gz"


def write_space(folder: Path) -> Path:
    """The space that the table was drawn from: what it never tried it cannot answer."""
    with gzip.open(TABLE, "rt") as lines:
        space = json.loads(next(lines))["study"]["search_space"]
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(space))
    return path


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
    """A study of 60 trials in seconds, without training."""
    if not TABLE.is_file():
        pytest.skip("the benchmarks are not part of an installed package")
    folder = tmp_path_factory.mktemp("replayed") / "run"
    space = write_space(folder.parent)
    said = call(
        "launch", "digits", "--run-dir", folder, "--executor", "replay", "--set", f"executor.table={TABLE}",
        "--trials", 60, "--set", "rungs.reduction=1.5", "--set", f"search_space={space}",
    )  # fmt: skip
    assert said.exit_code == 0, said.output
    return folder


def test_query_proposes_a_recipe_with_its_error(run: Run, replayed):
    said = run("query", replayed, "--target-flops", 0.42, "--json")
    assert said.exit_code == 0, said.output
    told = json.loads(said.stdout)
    assert Recipe.parse(told["recipe"]).target.flops_fraction == 0.42
    assert 0.5 < told["predicted_accuracy"] <= 1
    assert 0 < told["error"] < 0.5
    assert told["held_out"]["count"] >= 20
    text = run("query", replayed, "--target-flops", 0.42).stdout
    assert Recipe.from_yaml(text).plain() == told["recipe"], "the output is a recipe file"


def test_query_refuses_nonsense(run: Run, replayed, finished, tmp_path):
    assert run("query", replayed, "--target-flops", 42).exit_code == 2
    assert "--run needs --out" in run("query", replayed, "--target-flops", 0.4, "--run").stderr
    refused = run("query", replayed, "--target-flops", 0.4, "--run", "--out", tmp_path / "x")
    assert refused.exit_code == 2
    assert "replayed study" in refused.stderr
    few = run("query", finished, "--target-flops", 0.4)
    assert few.exit_code == 2
    assert "too few" in few.stderr


def test_a_warm_start_takes_over_the_best_recipes(run: Run, replayed, tmp_path):
    command = (
        "launch", "digits", "--run-dir", tmp_path / "run", "--executor", "replay", "--set", f"executor.table={TABLE}",
        "--trials", 8, "--target-flops", "0.5", "--warm-start", replayed,
        "--set", f"search_space={write_space(tmp_path)}",
    )  # fmt: skip
    said = run(*command)
    assert said.exit_code == 0, said.output
    frozen = yaml.safe_load((tmp_path / "run" / "study.yaml").read_text())
    assert len(frozen["warm_start"]) == 2
    assert run(*command).exit_code == 0, "the same command resumes"


def test_a_warm_start_from_nowhere_is_refused(run: Run, tmp_path):
    said = run("launch", "digits", "--run-dir", tmp_path / "run", "--warm-start", tmp_path / "nothing")
    assert said.exit_code == 2


def test_query_can_run_what_it_proposes(run: Run, finished, tmp_path, monkeypatch):
    # a study of four trials has too little to learn from; what is tested is the way from a proposal to a model
    monkeypatch.setattr("autoprune.search.surrogate.LEAST", 1)
    monkeypatch.setattr("autoprune.search.surrogate._FOLDS", 2)
    out = tmp_path / "model"
    said = run("query", finished, "--target-flops", 0.6, "--run", "--out", out, "--json")
    assert said.exit_code == 0, said.output
    told = json.loads(said.stdout)
    assert told["measured"]["flops_fraction"] <= 0.6
    assert told["predicted_after_rung_0"]["error"] >= 0
    artefact.load(out)
    assert json.loads(run("evaluate", out, "--split", "validation", "--json").stdout)["validation"][
        "accuracy"
    ] == pytest.approx(told["measured"]["accuracy"])
