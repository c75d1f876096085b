"""The worker: runs rungs of trials from what the run folder holds. One per process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import load_model
from torch import nn

from autoprune import artefact
from autoprune.artefact import DataRecord, Manifest
from autoprune.base import Base
from autoprune.compressed import Compressed
from autoprune.cost import latency_ms
from autoprune.data import build_data
from autoprune.deployment.quantised import Quantised
from autoprune.errors import BadData, Failure
from autoprune.export import QUANTISED
from autoprune.files import append_line, read_json, write_bytes
from autoprune.graph import Structure
from autoprune.models import build_model
from autoprune.recipe import Recipe
from autoprune.search import objectives
from autoprune.seeds import derive_seed
from autoprune.study.config import RungSpec
from autoprune.study.jobs import Job, JobResult
from autoprune.study.run_folder import RunFolder
from autoprune.tasks import build_task
from autoprune.trial import (
    Bench,
    Cost,
    Finished,
    Outcome,
    as_deployed,
    finish,
    measure,
    metrics_of,
    on_split,
    prepare,
    quantised,
    train_compressed,
)

AfterRung = Callable[[int, float, Mapping[str, int]], None]


def make_worker(folder: Path) -> Worker:
    """Return the worker of a run folder; the factory that executors get."""
    return Worker(RunFolder(folder))


class Worker:
    """Runs jobs. What a trial needs between its rungs is the artefact in its folder, so any worker continues any trial.

    bench: made from the run folder when it is not given.
    """

    def __init__(self, run: RunFolder, bench: Bench | None = None) -> None:
        self._run = run
        self._config = run.config()
        self._by_file = objectives.of_deployed(self._config.objectives)
        self._bench = bench or load_bench(run)
        self._base_metrics = read_json(run.base_file).get("metrics", {}) if run.base_file.is_file() else {}

    def run(self, job: Job) -> JobResult:
        """Run one job. Raises AutopruneError and whatever torch raises."""
        if job.kind == "polish":
            return self._polish(job)
        return self._test(job) if job.kind == "test" else self._rung(job)

    def _rung(self, job: Job) -> JobResult:
        recipe = Recipe.parse(job.recipe, f"recipe of trial {job.trial}")
        notes: tuple[str, ...] = ()
        amounts: dict[str, object] = {}
        if job.rung == 0:
            prepared = prepare(recipe, self._bench, job.seed)
            compressed, cost, notes = prepared.compressed, prepared.cost, prepared.notes
            amounts = asdict(prepared.amounts)
        else:
            compressed, cost = self._trained(job, recipe)
        measured = measure(compressed.model, self._bench, job.samples)
        metrics, cost = metrics_of(measured) | self._latency(job, compressed), cost + measured.cost
        more = Finished()
        if job.finished:
            metrics, more = self._finished(job, recipe, compressed, metrics)
        total = asdict(cost + more.cost)
        self._save(job, compressed, metrics, notes, self._run.trial(job.trial), more.quantised)
        result = JobResult(metrics=metrics, cost=total, amounts=amounts, notes=notes)
        append_line(self._run.trial(job.trial) / "metrics.jsonl", {"rung": job.rung} | result.plain())
        return result

    def _trained(self, job: Job, recipe: Recipe) -> tuple[Compressed, Cost]:
        """Continue from the rung before. An artefact of this very rung is one whose result never arrived: keep it."""
        folder = self._run.trial(job.trial)
        found = self._loaded(job)
        rung = artefact.read_manifest(folder).rung
        if rung == job.rung:
            return found, Cost()
        if rung != job.rung - 1:
            raise Failure(f"{folder} holds rung {rung} of the trial, rung {job.rung - 1} was expected")
        seed = derive_seed(job.seed, "rung", job.rung)
        return train_compressed(found, recipe, self._bench, seed, job.epochs)

    def _polish(self, job: Job) -> JobResult:
        """Train a finished model, or a repeat of it, for long, and measure it on all that there is."""
        recipe = Recipe.parse(job.recipe, f"recipe of trial {job.trial}")
        if job.repeat:
            seed = derive_seed(job.seed, "repeat", job.repeat)
            again = run_rungs(recipe, self._bench, self._config.rungs, seed)
            compressed, cost = again.compressed, again.cost
        else:
            compressed, cost = self._loaded(job), Cost()
        seed = derive_seed(job.seed, "polish", job.repeat)
        compressed, spent = train_compressed(compressed, recipe, self._bench, seed, job.epochs)
        model, cost = compressed.model, cost + spent
        measured = measure(model, self._bench)
        metrics, more = self._finished(job, recipe, compressed, metrics_of(measured))
        self._save(job, compressed, metrics, (), self._run.polished(job.trial, job.repeat), more.quantised)
        found = self._tested(model, more.quantised) if self._bench.data.test is not None else {}
        total = asdict(cost + measured.cost + more.cost)
        return JobResult(metrics=metrics | {f"test_{name}": value for name, value in found.items()}, cost=total)

    def _finished(
        self, job: Job, recipe: Recipe, compressed: Compressed, metrics: Mapping[str, float]
    ) -> tuple[dict[str, float], Finished]:
        """Add what is measured of finished models; where the study asks for it, accuracy becomes that of the file."""
        more = finish(compressed.model, recipe, self._bench, job.seed, job.samples)
        found = {**metrics, **more.metrics}
        if self._by_file:
            found = as_deployed(found, compressed.model, self._bench, recipe.quantisation, self._base_metrics)
        return found, more

    def _loaded(self, job: Job) -> Compressed:
        found = artefact.load_compressed(self._run.trial(job.trial), self._bench.base.model)
        self._bench.laid_out(found.model.to(self._bench.device))
        return found

    def _test(self, job: Job) -> JobResult:
        model, recipe = self._loaded(job).model, Recipe.parse(job.recipe, f"recipe of trial {job.trial}")
        found = self._tested(model, quantised(model, recipe, self._bench, job.seed) if self._by_file else None)
        return JobResult(metrics=found, cost={"forward_samples": found["count"]})

    def _tested(self, model: nn.Module, file: Quantised | None) -> dict[str, float]:
        if self._bench.data.test is None:
            raise BadData(f"data {self._bench.data.name!r} has no test split")
        return on_split(model, file if self._by_file else None, self._bench.data.test, self._bench)

    def _latency(self, job: Job, compressed: Compressed) -> dict[str, float]:
        if not job.latency:
            return {}
        return {"latency_ms": latency_ms(compressed.model, self._bench.data.train.one_sample(self._bench.device))}

    def _save(
        self,
        job: Job,
        compressed: Compressed,
        metrics: Mapping[str, float],
        notes: tuple[str, ...],
        folder: Path,
        file: Quantised | None,
    ) -> None:
        config, data = self._config, self._bench.data
        base = {f"base_{name}": value for name, value in self._base_metrics.items()}
        manifest = Manifest(
            model=config.model.model_copy(update={"weights": None}),
            recipe=dict(job.recipe),
            metrics={**metrics, **base},
            seeds={"study": config.seed, "trial": job.seed},
            data=DataRecord(
                name=data.name, fingerprint=data.fingerprint, num_classes=data.num_classes, spec=config.data
            ),
            task=config.task,
            study=config.name,
            trial=job.trial,
            rung=job.rung,
            notes=notes,
        )
        artefact.save(folder, compressed, manifest)
        if file is not None and self._by_file:
            write_bytes(folder / QUANTISED, file.content)


def run_rungs(recipe: Recipe, bench: Bench, rungs: RungSpec, seed: int, after: AfterRung | None = None) -> Outcome:
    """Run a recipe from the base model through all rungs, as a trial of a study that is never stopped.

    after: told every rung's number, validation accuracy and, at rung 0, the kept units of each group.
    Raises as `run_trial` does.
    """
    prepared = prepare(recipe, bench, seed)
    compressed, cost = prepared.compressed, prepared.cost
    first = last = measure(compressed.model, bench, rungs.samples(0))
    cost += first.cost
    if after is not None:
        after(0, first.accuracy, prepared.amounts.counts)
    for rung in range(1, rungs.top + 1):
        own = derive_seed(seed, "rung", rung)
        compressed, spent = train_compressed(compressed, recipe, bench, own, rungs.trained(rung))
        last = measure(compressed.model, bench, rungs.samples(rung))
        cost += spent + last.cost
        if after is not None:
            after(rung, last.accuracy, {})
    return Outcome(
        recipe=recipe,
        compressed=compressed,
        amounts=prepared.amounts,
        validation=last,
        before_training=first,
        notes=prepared.notes,
        cost=cost,
    )


def load_bench(run: RunFolder) -> Bench:
    """Build everything that trials need from a prepared run folder."""
    config = run.config()
    data = build_data(config.data)
    spec = config.model.model_copy(update={"weights": None})
    model = build_model(spec, data.num_classes, seed=0)
    load_model(model, run.base_weights)
    structure = Structure.from_json(run.structure_file.read_text(encoding="utf-8"))
    base = Base(model.eval(), structure, config.model)
    return Bench(base, data, build_task(config.task), config.trial, run.evidence)
