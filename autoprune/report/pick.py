"""A chosen model, saved as an artefact of its own and checked again in a fresh process."""

from __future__ import annotations

import datetime
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import autoprune
from autoprune.errors import BadInput, CheckFailed
from autoprune.report.quality import accuracy_on_test, float_accuracy
from autoprune.study.records import TrialRecord
from autoprune.study.run_folder import RunFolder

if TYPE_CHECKING:
    from torch import nn

    from autoprune.artefact import Manifest

# Another number of threads or another device may flip a sample whose two best classes tie.
_ALLOWED_SHARE, _ALLOWED_SAMPLES = 0.001, 1


@dataclass(frozen=True, kw_only=True)
class Pick:
    """One trial of a study, chosen. `source` is the study's run folder.

    repeat: of the polished model that this is, with its metrics in `trial`; None for the model of the search.
    """

    trial: TrialRecord
    source: Path
    repeat: int | None = None

    @property
    def artefact(self) -> Path:
        """The folder that holds the model."""
        run = RunFolder(self.source)
        return run.trial(self.trial.number) if self.repeat is None else run.polished(self.trial.number, self.repeat)

    def load(self) -> nn.Module:
        """Return the model. Raises WrongArtefact."""
        from autoprune import artefact

        return artefact.load(self.artefact)

    def save(self, folder: str | Path, *, check: bool = True) -> Path:
        """Save the model as an artefact and return the folder.

        check: load and evaluate it in a fresh process; the folder appears only when that agrees.
        Raises BadInput when the folder exists and is not empty, WrongArtefact, CheckFailed.
        """
        place = Path(folder)
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise BadInput(f"{place} exists and is not empty; choose another folder, or remove it first")
        place.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}."))
        try:
            self._write(staging)
            if check:
                recheck(staging, self.trial)
            if place.exists():
                place.rmdir()
            staging.chmod(0o755)
            staging.rename(place)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return place

    def _write(self, folder: Path) -> None:
        from autoprune import artefact
        from autoprune.export import QUANTISED

        if (self.artefact / artefact.MANIFEST).is_file() and not (self.artefact / artefact.WEIGHTS).is_file():
            raise BadInput(
                f"the weights of trial {self.trial.number} were not kept: a study keeps those of its front, the best "
                "at each target and of baselines, unless it says `checkpoints: all`. Its recipe can be run again: "
                f"autoprune compress STUDY --recipe {self.artefact / artefact.RECIPE} --out DIR"
            )

        compressed = artefact.load_compressed(self.artefact)
        artefact.save(folder, compressed, self._described(artefact.read_manifest(self.artefact)))
        if (self.artefact / QUANTISED).is_file():
            shutil.copyfile(self.artefact / QUANTISED, folder / QUANTISED)

    def _described(self, manifest: Manifest) -> Manifest:
        metrics = {name: float(value) for name, value in self.trial.metrics.items()}
        tested = accuracy_on_test(self.trial)
        if math.isfinite(tested):
            metrics["test_accuracy"] = tested
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return manifest.model_copy(update={"metrics": manifest.metrics | metrics, "created": created})


def recheck(folder: Path, trial: TrialRecord) -> dict[str, Any]:
    """Evaluate an artefact in a fresh process and compare accuracy and FLOPs of its float32 model with the record.

    The validation accuracy may differ by one sample or a thousandth of them. Raises CheckFailed.
    """
    samples = int(trial.metrics.get("count", 0))
    found = _evaluate_elsewhere(folder, samples)
    measured, expected = found["validation"]["accuracy"], float_accuracy(trial)
    allowed = max(_ALLOWED_SAMPLES / max(found["validation"]["count"], 1), _ALLOWED_SHARE)
    if not abs(measured - expected) <= allowed + 1e-9:
        raise CheckFailed(
            f"the saved model of trial {trial.number} has validation accuracy {measured:.4f} in a fresh "
            f"process, but {expected:.4f} was recorded (allowed difference {allowed:.4f}). "
            "Did the data change since the study ran?"
        )
    if found["flops"] != int(trial.metrics["flops"]):
        raise CheckFailed(
            f"the saved model of trial {trial.number} has {found['flops']} FLOPs in a fresh process, "
            f"but {int(trial.metrics['flops'])} were recorded"
        )
    return found


def _evaluate_elsewhere(folder: Path, samples: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "autoprune", "evaluate", str(folder), "--split", "validation", "--json"]
    if samples:
        command += ["--samples", str(samples)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
    if done.returncode:
        reason = done.stderr.strip() or f"exit status {done.returncode}"
        raise CheckFailed(f"the saved model cannot be evaluated in a fresh process: {reason}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _environment() -> dict[str, str]:
    """Return an environment in which the fresh process finds this very package, also when it is not installed."""
    here = str(Path(autoprune.__file__).parents[1])
    known = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([here, known] if known else [here])}
