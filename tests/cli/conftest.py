"""One tiny study, launched once by the real command, for all tests that look at a finished run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from autoprune.cli import app

Run = Callable[..., Result]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def run() -> Run:
    """Calls the command line in this process."""
    return call


TINY = (
    "--trials", 4, "--target-flops", "0.5", "--executor", "inline", "--set", "train_base.epochs=3",
    "--set", "rungs.epochs=[0, 0.5]", "--set", "trial.evidence_batches=4",
)  # fmt: skip


@pytest.fixture(scope="session")
def launched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The run folder of a finished study, and what launching it said."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    return folder, call("launch", "digits", "--run-dir", folder, *TINY)


@pytest.fixture(scope="session")
def finished(launched: tuple[Path, Result]) -> Path:
    folder, said = launched
    assert said.exit_code == 0, said.output
    return folder


@pytest.fixture(scope="session")
def picked(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("picked") / "model"
    said = call("pick", finished, "--target-flops", 0.5, "--out", out, "--no-check")
    assert said.exit_code == 0, said.output
    return out
