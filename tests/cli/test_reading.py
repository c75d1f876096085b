"""Commands that need no run: help, version, methods, show, check."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from autoprune import presets, rooms

from .conftest import Run

COMMANDS = (
    "launch", "check", "status", "front", "pick", "evaluate", "export", "report", "scratch", "compress", "methods",
    "show", "polish", "query", "bottlenecks",
)  # fmt: skip


def test_help_lists_every_command(run: Run) -> None:
    said = run("--help")
    assert said.exit_code == 0
    assert all(f"  {command} " in said.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(run: Run, command: str) -> None:
    said = run(command, "--help")
    assert said.exit_code == 0
    assert f"{command} [OPTIONS]" in said.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_speaks_json(run: Run, command: str) -> None:
    assert "--json" in run(command, "--help").stdout


def test_version(run: Run) -> None:
    assert run("--version").stdout.startswith("autoprune 0.")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from autoprune.cli import app; app(['--help'], standalone_mode=False);"
        "print([m for m in ('torch', 'optuna', 'ray', 'pydantic', 'numpy', 'plotly') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_methods_lists_every_room(run: Run) -> None:
    plain = json.loads(run("methods", "--json").stdout)
    listed = {(entry["room"], entry["name"]) for entry in plain}
    assert listed == {(room, name) for room in rooms.ROOMS for name in rooms.names(room)} | {
        ("presets", name) for name in presets.names()
    }
    assert all(entry["summary"] and entry["paper"] for entry in plain)


def test_methods_of_a_room(run: Run) -> None:
    said = run("methods", "schedules")
    assert "iterative" in said.stdout
    assert "arXiv 1608.08710" in said.stdout
    assert "count = 3" in said.stdout
    assert "l1_norm" not in said.stdout


def test_methods_of_presets(run: Run) -> None:
    (found,) = [e for e in json.loads(run("methods", "presets", "--json").stdout) if e["name"] == "l1_filters"]
    criterion = found["recipe"]["criterion"]
    assert (criterion["name"], criterion["streams"], criterion["strategy"]) == ("l1_norm", "whole", "greedy")


def test_show_says_where_values_come_from(run: Run) -> None:
    said = json.loads(run("show", "digits", "--set", "budget.trials=7", "--json").stdout)
    assert said["values"]["budget"]["trials"] == 7
    assert said["origins"]["budget.trials"] == "flag"
    assert said["origins"]["name"] == "file"
    assert said["origins"]["trial.device"] == "default"
    assert "budget.trials" in run("show", "digits").stdout


def test_check(run: Run) -> None:
    said = run("check", "digits")
    assert said.exit_code == 0, said.output
    assert "layer3.conv2" in said.stdout
    assert "output of the network" in said.stdout
    plain = json.loads(run("check", "digits", "--json").stdout)
    assert plain["structure"]["flops"] == 1_527_040
    assert plain["targets"] == {"flops=0.5": "reachable", "flops=0.35": "reachable", "flops=0.25": "reachable"}
    assert plain["forecast"]["jobs"][0] >= 24


def test_check_shows_blocks(run: Run) -> None:
    said = run("check", "digits", "--set", "search_space=depth")
    assert said.exit_code == 0, said.output
    assert "Blocks that can be skipped: 1 (38.63 % of the FLOPs)" in said.stdout
    assert "conv2d (layer2.shortcut.0) is on the shortcut" in said.stdout
    structure = json.loads(run("check", "digits", "--set", "search_space=depth", "--json").stdout)["structure"]
    (block,) = structure["blocks"]
    assert (block["name"], block["first_of_stage"]) == ("layer1", True)
    assert block["flops_share"] == 589_824 / 1_527_040
    assert [fixed["name"] for fixed in structure["fixed_blocks"]] == ["layer2", "layer3"]
