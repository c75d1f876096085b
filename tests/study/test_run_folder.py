from __future__ import annotations

import subprocess
import sys

import pytest

from autoprune.errors import BadInput, UnknownName
from autoprune.files import write_json
from autoprune.study.run_folder import RunFolder, differences, find_run, self_contained


def test_a_frozen_study_is_read_back(tmp_path, make_config):
    run, config = RunFolder(tmp_path), self_contained(make_config())
    run.freeze(config)
    assert run.config() == config


def test_another_study_is_refused_by_the_keys_that_differ(tmp_path, make_config):
    run = RunFolder(tmp_path)
    run.freeze(make_config())
    write_json(run.base_file, {})
    with pytest.raises(BadInput, match=r"seed was 0, now 1\..*another run folder"):
        run.freeze(make_config(seed=1))
    assert run.config().seed == 0


def test_a_study_that_was_never_prepared_may_be_corrected(tmp_path, make_config):
    run = RunFolder(tmp_path)
    run.freeze(make_config(seed=7))
    run.freeze(make_config(seed=1))
    assert run.config().seed == 1


def test_budget_executor_and_storage_may_change(tmp_path, make_config):
    run = RunFolder(tmp_path)
    run.freeze(make_config())
    run.freeze(make_config(budget__trials=99, executor__name="local", storage="sqlite:///x.db"))
    assert run.config().budget.trials == 99


def test_differences_of_lists_and_nested_keys(make_config):
    found = differences(make_config(), make_config(targets=[0.3], rungs__reduction=2))
    assert [line.split(" was ")[0] for line in found] == ["targets", "rungs.reduction"]


def test_self_contained_has_the_space_written_out_and_absolute_paths(tmp_path, make_config, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("criterion: l2_norm\n")
    config = make_config(search_space="mine.yaml", model__weights="w.pt", baselines=["uniform_l1", "mine.yaml"])
    made = self_contained(config)
    assert made.search_space == {"criterion": "l2_norm"}
    assert made.model.weights == str(tmp_path / "w.pt")
    assert made.baselines[0] == "uniform_l1"
    assert made.baselines[1]["preset"] == "mine"
    assert self_contained(made) == made


def test_functions_stay_functions(make_config):
    reference = "autoprune.study.testing:example_space"
    assert self_contained(make_config(search_space=reference)).search_space == reference


HOLDER = """
import sys
from pathlib import Path
from autoprune.study.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_drivers_cannot_hold_a_folder_and_a_dead_one_does_not(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BadInput, match=f"in use by process {holder.pid} on"), RunFolder(tmp_path).locked():
            pass
        holder.kill()
        holder.wait()
    with RunFolder(tmp_path).locked():
        pass


def test_runs_by_path_and_name(tmp_path, make_config, monkeypatch):
    monkeypatch.chdir(tmp_path)
    RunFolder(tmp_path / "runs" / "fake").freeze(make_config())
    assert find_run("fake").config().name == "fake"
    assert find_run(tmp_path / "runs" / "fake").config().name == "fake"
    with pytest.raises(UnknownName, match="Did you mean 'fake'"):
        find_run("fakes")
    with pytest.raises(UnknownName, match="no run folder"):
        RunFolder(tmp_path).config()
