"""The run folder: everything a study leaves on disk, and who may write to it.

study.yaml (frozen), study.db, structure.json, base/, evidence/, trials/<number>/, polished/<number>-<repeat>/,
workers/, front/, report.html, log.jsonl
"""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from autoprune.errors import BadInput, UnknownName, unknown_name
from autoprune.files import write_text
from autoprune.recipe import Recipe
from autoprune.search.baselines import build_baselines, names
from autoprune.search.space import read_space
from autoprune.specs import expand_path
from autoprune.study.config import StudyConfig, leaves, load

RUNS = Path("runs")
"""Where run folders are when only a name is given."""

_MAY_CHANGE = ("budget", "executor", "storage")


@dataclass(frozen=True)
class RunFolder:
    """Paths inside one run folder."""

    path: Path

    @property
    def study_file(self) -> Path:
        """The frozen study."""
        return self.path / "study.yaml"

    @property
    def structure_file(self) -> Path:
        """The traced structure."""
        return self.path / "structure.json"

    @property
    def base_weights(self) -> Path:
        """The weights of the base model."""
        return self.path / "base" / "model.safetensors"

    @property
    def machine_file(self) -> Path:
        """The machine that prepared and drives the study."""
        return self.path / "machine.json"

    @property
    def base_file(self) -> Path:
        """What was measured on the base model; written last, so that it says that all preparation is there."""
        return self.path / "base" / "base.json"

    @property
    def evidence(self) -> Path:
        """Evidence about the base model."""
        return self.path / "evidence"

    @property
    def log(self) -> Path:
        """One JSON line per event."""
        return self.path / "log.jsonl"

    def trial(self, number: int) -> Path:
        """The folder of a trial: its artefact and metrics.jsonl."""
        return self.path / "trials" / str(number)

    def polished(self, number: int, repeat: int) -> Path:
        """The folder of a trial's polished model."""
        return self.path / "polished" / f"{number}-{repeat}"

    def identity(self) -> str:
        """Return what tells this run folder from others in a shared storage; it stays when the folder moves."""
        file = self.path / "identity"
        if not file.is_file():
            write_text(file, uuid.uuid4().hex)
        return file.read_text(encoding="utf-8")

    def config(self) -> StudyConfig:
        """Return the frozen study. Raises UnknownName when this is no run folder."""
        if not self.study_file.is_file():
            raise UnknownName(f"{self.path} is no run folder: it holds no study.yaml")
        return load(self.study_file).config

    def freeze(self, config: StudyConfig) -> None:
        """Write the study down, or check that it is the one that is there; budget and executor may change.

        A study whose preparation never ended (bad input, say) binds nobody: it may be replaced by a corrected one.
        Raises BadInput naming the keys that differ.
        """
        if self.study_file.is_file() and self.base_file.is_file():
            changed = differences(self.config(), config)
            if changed:
                raise BadInput(
                    f"{self.path} holds a study with other settings: " + "; ".join(changed) + ". Only "
                    f"{', '.join(_MAY_CHANGE)} may change; use another run folder (--run-dir) for another study"
                )
        write_text(self.study_file, config.to_yaml())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder against other drivers. The kernel lets go of the lock when its owner dies, however it dies.

        Raises BadInput naming the process that holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                owner = file.read().strip() or "another process"
                raise BadInput(f"{self.path} is in use by {owner}; wait for it, or stop it first") from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {os.uname().nodename}")
            file.flush()
            yield


def find_run(name: str | Path) -> RunFolder:
    """Return the run folder of a path, or of a name under runs/. Raises UnknownName."""
    for path in (Path(name).expanduser(), RUNS / name):
        if (path / "study.yaml").is_file():
            return RunFolder(path)
    known = [p.parent.name for p in RUNS.glob("*/study.yaml")]
    raise unknown_name("run folder", str(name), known)


def default_run(config: StudyConfig) -> Path:
    """Return where a study runs when nothing else is said."""
    return RUNS / config.name


def differences(old: StudyConfig, new: StudyConfig) -> list[str]:
    """Return one line for each setting that differs and may not."""
    was, now = dict(leaves(old.model_dump(mode="json"))), dict(leaves(new.model_dump(mode="json")))
    keys = [k for k in {**was, **now} if k.split(".")[0] not in _MAY_CHANGE]
    return [
        f"{key} was {was.get(key, 'not there')!r}, now {now.get(key, 'not there')!r}"
        for key in keys
        if was.get(key) != now.get(key)
    ]


def self_contained(config: StudyConfig) -> StudyConfig:
    """Return the study with search space and baselines written out and with absolute paths.

    A resumed study then does not depend on files that may have changed, nor on the current directory.
    """
    changes: dict[str, object] = {
        "baselines": tuple(b if b in names() else _inline(b, config) for b in config.baselines)
    }
    if not (isinstance(config.search_space, str) and ":" in config.search_space):
        changes["search_space"] = read_space(config.search_space)[0]
    if config.model.weights is not None:
        weights = expand_path(config.model.weights, "model.weights").absolute()
        changes["model"] = config.model.model_copy(update={"weights": str(weights)})
    if config.data.root is not None:
        root = expand_path(config.data.root, "data.root").absolute()
        changes["data"] = config.data.model_copy(update={"root": str(root)})
    if config.executor.table is not None:
        table = expand_path(config.executor.table, "executor.table").absolute()
        changes["executor"] = config.executor.model_copy(update={"table": str(table)})
    return config.model_copy(update=changes)


def _inline(given: object, config: StudyConfig) -> dict[str, object]:
    (baseline,) = build_baselines([given])  # type: ignore[list-item]
    recipe: Recipe = baseline.recipe.model_copy(update={"preset": baseline.name})
    return recipe.plain()
