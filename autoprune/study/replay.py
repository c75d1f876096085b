"""A study's outcomes as a table, and a worker that answers from it: searches are compared in seconds, without training.

A table holds every measured recipe with the metrics and costs of its rungs, the structure that the search space needs,
and the settings it was measured under. A recipe of the table is answered exactly. Any other is answered by a surrogate
over those of the table that reached the top rung: forests for the metrics and for the costs, whose cross-validated
error stands in the answer's notes and metrics (`accuracy_error`). The surrogate is smoother than training: it has no
luck of the seed. A method that no recipe of the table uses is refused.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from autoprune.errors import BadInput, NotApplicable
from autoprune.files import read_json, replacing, write_json, write_text
from autoprune.recipe import Recipe
from autoprune.search.surrogate import Surrogate
from autoprune.study.config import StudyConfig, leaves, load
from autoprune.study.jobs import Job, JobResult
from autoprune.study.records import read_study
from autoprune.study.run_folder import RunFolder

_FORMAT = 1
REPLAYED = "replayed"
"""Key of base.json that marks a run folder without a model."""
_SAME = ("model", "data", "task", "structure", "rungs.epochs", "rungs.validation_samples")
_METRICS = ("accuracy", "loss")
_FRACTIONS = ("flops_fraction", "params_fraction")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One recipe as it was measured; `rungs` holds metrics, cost and amounts of each, from rung 0."""

    recipe: Mapping[str, Any]
    rungs: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Table:
    """Measured recipes of one model, data and rungs. `structure` is the structure's JSON."""

    config: StudyConfig
    base: Mapping[str, float]
    structure: str
    measured: tuple[Measured, ...]

    @classmethod
    def of_run(cls, run: RunFolder) -> Table:
        """Return the table of a study's run folder. Raises BadInput when it has measured nothing."""
        config = run.config()
        record = read_study(config, run.path)
        measured = tuple(
            Measured(
                recipe=t.recipe,
                rungs=tuple(
                    {"metrics": dict(r.metrics), "cost": dict(r.cost), "amounts": dict(r.amounts)} for r in t.rungs
                ),
            )
            for t in record.trials
            if t.rungs and t.recipe is not None
        )
        if not measured:
            raise BadInput(f"{run.path} has no measured recipe to replay")
        return cls(config, record.base, run.structure_file.read_text(encoding="utf-8"), measured)

    @classmethod
    def read(cls, path: Path) -> Table:
        """Read a table, a .jsonl.gz file or a run folder. Raises BadInput."""
        if (path / "study.yaml").is_file():
            return cls.of_run(RunFolder(path))
        try:
            with gzip.open(path, "rt", encoding="utf-8") as file:
                head, *lines = [json.loads(line) for line in file]
        except (OSError, ValueError, EOFError) as error:
            raise BadInput(f"{path} is neither a run folder nor a table of outcomes: {error}") from error
        if not isinstance(head, dict) or head.get("format") != _FORMAT:
            raise BadInput(
                f"{path} is no table of outcomes of format {_FORMAT}; 'python benchmarks/record.py' makes one"
            )
        measured = tuple(Measured(recipe=line["recipe"], rungs=tuple(line["rungs"])) for line in lines)
        return cls(load(head["study"]).config, head["base"], json.dumps(head["structure"]), measured)

    def write(self, path: Path) -> None:
        """Write the table; the same table gives the same bytes."""
        head = {
            "format": _FORMAT,
            "study": self.config.plain(),
            "base": dict(self.base),
            "structure": json.loads(self.structure),
        }
        lines = [head, *({"recipe": m.recipe, "rungs": list(m.rungs)} for m in self.measured)]
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
        with replacing(path) as temporary:
            temporary.write_bytes(gzip.compress(text.encode(), mtime=0))

    def check_fits(self, config: StudyConfig) -> None:
        """Raises BadInput when a study's model, data or rungs are not the table's."""
        was, now = (dict(leaves(c.model_dump(mode="json"))) for c in (self.config, config))
        changed = [
            f"{key} was {was.get(key)!r}, now {now.get(key)!r}"
            for key in sorted(was.keys() | now.keys())
            if any(key == same or key.startswith(f"{same}.") for same in _SAME) and was.get(key) != now.get(key)
        ]
        if changed:
            raise BadInput(f"the study does not fit its table of outcomes: {'; '.join(changed)}")

    def fill(self, run: RunFolder) -> None:
        """Write into a run folder what a controller needs; there is no model."""
        write_text(run.structure_file, self.structure)
        write_json(run.base_file, {"metrics": dict(self.base), REPLAYED: True})


def is_replayed(run: RunFolder) -> bool:
    """Tell whether a run folder was filled from a table."""
    return run.base_file.is_file() and bool(read_json(run.base_file).get(REPLAYED))


class ReplayWorker:
    """Answers jobs from a table. See the module."""

    def __init__(self, table: Table) -> None:
        """Take up a table. Raises BadRecipe for one whose recipes this version cannot read."""
        self._table = table
        self._top = table.config.rungs.top
        # spelled out by this version, so that a key which recipes did not have when they were recorded has its default
        self._measured = [
            Measured(recipe=Recipe.parse(m.recipe, f"recipe {i} of the table").plain(), rungs=m.rungs)
            for i, m in enumerate(table.measured)
        ]
        self._exact = {_key(m.recipe): m for m in self._measured}
        self._guesses: dict[str, tuple[Mapping[str, Any], ...]] = {}

    def run(self, job: Job) -> JobResult:
        """Answer a job. Raises NotApplicable for one that the table says nothing about, BadInput for a small table."""
        if job.kind != "rung" or job.latency or job.rung > self._top:
            raise NotApplicable(f"a table of outcomes holds neither tests nor latency nor rungs above {self._top}")
        key = _key(job.recipe)
        found = self._exact.get(key)
        if found is not None and job.rung < len(found.rungs):
            return JobResult(**found.rungs[job.rung], notes=("replayed exactly",))
        if key not in self._guesses:
            self._guesses[key] = self._guess(job.recipe)
        return JobResult(**self._guesses[key][job.rung], notes=(self.stated,))

    @cached_property
    def stated(self) -> str:
        """What the surrogate is, and how far it is off."""
        fit = self.surrogates[0].fit(self._top * len(_METRICS))
        return (
            f"interpolated by a forest over {fit.count} outcomes; held out, its top-rung accuracy is off by "
            f"{fit.rmse:.4f} (root mean square; median {fit.median_error:.4f}), rank correlation "
            f"{fit.rank_correlation:.2f}"
        )

    @cached_property
    def surrogates(self) -> tuple[Surrogate, Surrogate]:
        """The forests for metrics (accuracy and loss of every rung, then fractions) and for costs."""
        whole = [m for m in self._measured if len(m.rungs) > self._top]
        recipes = [m.recipe for m in whole]
        metrics_NV = np.array([_metric_values(m) for m in whole])
        costs_NV = np.array([[rung["cost"][name] for rung in m.rungs for name in self._costs] for m in whole])
        return Surrogate(recipes, metrics_NV), Surrogate(recipes, costs_NV)

    @cached_property
    def _costs(self) -> list[str]:
        return sorted(self._table.measured[0].rungs[0]["cost"])

    def _guess(self, recipe: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
        metrics, costs = self.surrogates
        unseen = metrics.encoder.unseen(recipe)
        if unseen:
            raise NotApplicable(f"no recipe of the table has {' or '.join(unseen)}; record a table that has")
        values_V, spent_V = metrics.predict([recipe])[0], costs.predict([recipe])[0]
        shares, pinned = values_V[-len(_FRACTIONS) :].tolist(), _pinned(recipe)
        fractions = {name: share * pinned[name] for name, share in zip(_FRACTIONS, shares, strict=True)}
        return tuple(
            {"metrics": self._metrics(rung, values_V.tolist(), fractions), "cost": self._cost(rung, spent_V.tolist())}
            for rung in range(self._top + 1)
        )

    def _metrics(self, rung: int, values_V: Sequence[float], fractions: Mapping[str, float]) -> dict[str, float]:
        column = rung * len(_METRICS)
        base, count = self._table.base, self._table.measured[0].rungs[rung]["metrics"]["count"]
        found = dict(zip(_METRICS, values_V[column : column + len(_METRICS)], strict=True))
        return {
            **found,
            "accuracy_error": self.surrogates[0].error(column, found["accuracy"]),
            "count": count,
            **fractions,
            **{name: float(round(base[name] * fractions[f"{name}_fraction"])) for name in ("flops", "params")},
        }

    def _cost(self, rung: int, spent_V: Sequence[float]) -> dict[str, float]:
        first = rung * len(self._costs)
        return dict(zip(self._costs, spent_V[first : first + len(self._costs)], strict=True))


def _metric_values(one: Measured) -> list[float]:
    by_rung = [rung["metrics"][name] for rung in one.rungs for name in _METRICS]
    last, pinned = one.rungs[-1]["metrics"], _pinned(one.recipe)
    return by_rung + [last[name] / pinned[name] for name in _FRACTIONS]


def _pinned(recipe: Mapping[str, Any]) -> dict[str, float]:
    """Return the fraction of each cost that a recipe is repaired to, 1 where it has no target.

    A forest over shares of the target keeps every interpolated recipe near its own target.
    """
    target = recipe.get("target", {})
    return {name: target.get(name) or 1.0 for name in _FRACTIONS}


def _key(recipe: Mapping[str, Any]) -> str:
    return json.dumps(recipe, sort_keys=True)
