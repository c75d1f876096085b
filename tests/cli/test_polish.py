"""Polishing a finished study with the real command."""

from __future__ import annotations

import json
import shutil

import pytest

from autoprune import artefact

from .conftest import Run


@pytest.fixture(scope="module")
def run_folder(finished, tmp_path_factory):
    """A copy: other tests look at the study as the search left it."""
    folder = tmp_path_factory.mktemp("polish") / "run"
    shutil.copytree(finished, folder)
    return folder


def test_polish_trains_the_front_and_its_repeats(run: Run, run_folder, tmp_path):
    said = run("polish", run_folder, "--epochs", 0.25, "--repeats", 2, "--json")
    assert said.exit_code == 0, said.output
    front = json.loads(said.stdout)["front"]
    for one in front:
        assert one["polished"]["epochs"] == 0.25
        assert one["polished"]["accuracy"]["count"] == one["polished"]["test_accuracy"]["count"] == 2
        assert one["polished"]["accuracy"]["half_width"] >= 0
        for repeat in (0, 1):
            artefact.load(run_folder / "polished" / f"{one['trial']}-{repeat}")
    # nothing is trained again
    before = (run_folder / "polished" / f"{front[0]['trial']}-0" / "model.safetensors").stat().st_mtime_ns
    again = run("polish", run_folder, "--epochs", 0.25, "--repeats", 2)
    assert again.exit_code == 0
    assert "After polishing" in again.stdout
    assert (run_folder / "polished" / f"{front[0]['trial']}-0" / "model.safetensors").stat().st_mtime_ns == before
    assert "After polishing" in run("front", run_folder).stdout
    # a fresh process measures what was recorded
    picked = run("pick", run_folder, "--trial", front[0]["trial"], "--out", tmp_path / "model", "--json")
    assert picked.exit_code == 0, picked.output


def test_polish_refuses_nonsense(run: Run, run_folder):
    assert run("polish", run_folder, "--epochs", 0).exit_code == 2
    assert run("polish", run_folder, "--epochs", 1, "--trial", 99).exit_code == 2
    assert run("polish", run_folder.parent / "nothing", "--epochs", 1).exit_code == 2
    assert run("polish", run_folder).exit_code == 2
