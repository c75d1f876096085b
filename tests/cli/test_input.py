"""Bad input: one clear message on standard error, exit status 2, no traceback, nothing on standard output."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from autoprune.cli import common, studies

from .conftest import Run

STUDY = """
name: tiny
model: {name: digits_resnet}
data: {name: digits}
"""


def refused(run: Run, *arguments: object) -> str:
    said = run(*arguments)
    assert said.exit_code == 2, said.output
    assert said.stdout == ""
    assert "Traceback" not in said.stderr
    return " ".join(said.stderr.split())


@pytest.mark.parametrize("command", ["launch", "check", "show"])
def test_unknown_study(run: Run, command: str) -> None:
    assert "no study named 'digitz'. Did you mean 'digits'?" in refused(run, command, "digitz")


@pytest.mark.parametrize("command", ["launch", "check", "show"])
def test_missing_study_file(run: Run, tmp_path: Path, command: str) -> None:
    assert "nothing.yaml does not exist" in refused(run, command, tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("targts: [0.5]", "targts is no known key; did you mean 'targets'? Allowed here: name, model"),
        ("budget: {trails: 3}", "budget.trails is no known key; did you mean 'trials'? Allowed here: trials, time"),
        ("budget: {trials: many}", "budget.trials"),
        ("targets: [1.5]", "less than or equal to 1"),
        ("targets: [0]", "greater than 0"),
        ("rungs: {epochs: [1, 2]}", "epochs must begin with 0"),
        ("objectives: [speed]", "objectives"),
        ("executor: {name: slurm}", "'local'"),
        ("seed: [", "not valid YAML"),
    ],
)
def test_study_file_with_a_mistake(run: Run, tmp_path: Path, extra: str, message: str) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(STUDY + extra + "\n")
    said = refused(run, "show", path)
    assert message in said
    assert str(path) in said


def test_study_that_is_no_mapping(run: Run, tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- 1\n")
    assert "must be a mapping" in refused(run, "show", tmp_path / "list.yaml")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--target-flops", "0.5,1.2"), "--target-flops is a fraction greater than 0 and at most 1, got 1.2"),
        (("--target-flops", "50"), "Did you mean 0.5?"),
        (("--target-flops", "half"), "takes fractions like 0.5,0.35, got 'half'"),
        (("--time-budget", "soon"), "a duration is"),
        (("--trials", "0"), "budget.trials"),
        (("--set", "nonsense"), "--set takes KEY=VALUE"),
        (("--set", "modle.name=x"), "modle is no known key"),
        (("--set", "seed=1", "--seed", "2"), "seed is given twice"),
        (("--executor", "slurm"), "slurm"),
        (("--workers", "two"), "--workers"),
    ],
)
def test_launch_flags(run: Run, tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    assert message in refused(run, "launch", "digits", "--run-dir", tmp_path / "r", *flags)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("command", ["status", "front", "report"])
def test_run_that_does_not_exist(run: Run, command: str) -> None:
    assert "no run folder named 'nowhere'" in refused(run, command, "nowhere")


def test_unreachable_target(run: Run) -> None:
    said = refused(run, "check", "digits", "--set", "targets=[0.001]")
    assert "target flops=0.001 cannot be met" in said


def test_other_number_of_classes(run: Run) -> None:
    said = refused(run, "check", "digits", "--set", "model.arguments={num_classes: 7}")
    assert "7 logits" in said
    assert "10 classes" in said


def test_missing_weights_file(run: Run) -> None:
    assert "gone.pt" in refused(run, "check", "digits", "--set", "model.weights=/nowhere/gone.pt")


def test_model_that_does_not_exist(run: Run) -> None:
    assert "Did you mean 'digits_resnet'?" in refused(run, "check", "digits", "--set", "model.name=digits_resnt")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "exactly one of --target-flops"),
        (("--knee", "--trial", "0"), "got --trial and --knee"),
        (("--target-flops", "0"), "greater than 0"),
        (("--target-flops", "1.01"), "at most 1"),
        (("--target-flops", "0.01"), "no finished trial has at most 0.01 of the FLOPs; the nearest is"),
        (("--min-accuracy", "95"), "Did you mean 0.95?"),
        (("--trial", "99"), "there is no trial 99. Finished trials:"),
    ],
)
def test_pick(run: Run, finished: Path, tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    assert message in refused(run, "pick", finished, "--out", tmp_path / "m", *flags)
    assert not (tmp_path / "m").exists()


def test_pick_into_a_folder_in_use(run: Run, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    assert "is not empty" in refused(run, "pick", finished, "--knee", "--out", tmp_path)


def test_pick_without_out(run: Run, finished: Path) -> None:
    assert "--out" in refused(run, "pick", finished, "--knee")


def test_front_as_json_and_csv(run: Run, finished: Path) -> None:
    assert "exclude each other" in refused(run, "front", finished, "--json", "--csv")


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_folder_that_is_no_artefact(run: Run, tmp_path: Path, command: str) -> None:
    assert "holds no autoprune.json" in refused(run, command, tmp_path)
    assert "is no folder" in refused(run, command, tmp_path / "nothing")


def test_corrupted_artefact(run: Run, picked: Path, tmp_path: Path) -> None:
    for path in picked.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "is damaged" in refused(run, "evaluate", tmp_path)


def test_evaluate_with_a_setting_of_something_else(run: Run, picked: Path) -> None:
    assert "changes of its data only" in refused(run, "evaluate", picked, "--set", "seed=1")
    assert "rooot" in refused(run, "evaluate", picked, "--set", "data.rooot=/x")


def test_export_to_an_unknown_format(run: Run, picked: Path) -> None:
    assert "tflite" in refused(run, "export", picked, "--format", "tflite")


def test_export_with_a_bad_shape(run: Run, picked: Path) -> None:
    assert "like 3x32x32, got 'big'" in refused(run, "export", picked, "--input-shape", "big")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "exactly one of --preset and --recipe, got none"),
        (("--preset", "l1_filters", "--recipe", "r.yaml"), "got both"),
        (("--preset", "l1_filter"), "Did you mean 'l1_filters'?"),
        (("--recipe", "/nowhere/r.yaml"), "recipe file /nowhere/r.yaml does not exist"),
        (("--preset", "l1_filters", "--target-flops", "2"), "--target-flops is a fraction"),
        (("--preset", "l1_filters", "--target-latency", "85"), "--target-latency is a fraction"),
        (
            ("--preset", "l1_filters", "--target-latency", "0.8", "--target-flops", "0.5"),
            "one of --target-flops and --target-latency",
        ),
    ],
)
def test_compress(run: Run, tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    assert message in refused(run, "compress", "digits", "--out", tmp_path / "m", *flags)


def test_recipe_file_with_a_mistake(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("criterion: {name: l1_norm, power: 2}\n")
    said = refused(run, "compress", "digits", "--recipe", path, "--out", tmp_path / "m")
    assert "no hyperparameter 'power'" in said
    assert str(path) in said


def test_unknown_room(run: Run) -> None:
    assert "no room named 'criterion'. Did you mean 'criteria'?" in refused(run, "methods", "criterion")


def test_unknown_command_and_flag(run: Run) -> None:
    assert "lunch" in refused(run, "lunch")
    assert "--fast" in refused(run, "launch", "digits", "--fast")


def test_debug_shows_the_traceback(run: Run) -> None:
    said = run("--debug", "status", "nowhere")
    assert said.exit_code == 2
    assert "Traceback" in said.stderr
    assert "Traceback" not in run("status", "nowhere").stderr


def test_unexpected_error_is_one_message(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("surprise")

    monkeypatch.setattr(studies, "read_front", broken)
    said = run("status", "anything")
    assert said.exit_code == 1
    assert said.stderr.startswith("Error: unexpected RuntimeError: surprise")


def test_interrupt_says_how_to_resume(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("autoprune.study.launch.launch", interrupted)
    said = run("launch", "digits", "--run-dir", tmp_path)
    assert said.exit_code == common.INTERRUPTED
    assert "The same command goes on from there" in said.stderr


def test_exit_status_of_a_process(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "autoprune", "evaluate", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
