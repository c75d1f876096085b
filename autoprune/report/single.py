"""One recipe on a study's model, without a search."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoprune.files import read_json, write_bytes
from autoprune.study import events
from autoprune.study.config import StudyConfig, load
from autoprune.study.run_folder import RunFolder, default_run, differences, self_contained

if TYPE_CHECKING:
    from autoprune.recipe import Recipe
    from autoprune.trial import Bench, Outcome

Say = Callable[[str], None]
_MEASURED_PER_LINE = 20


def compress_study(
    study: str,
    recipe: Recipe,
    seed: int,
    out: Path,
    overrides: Mapping[str, Any],
    say: Say,
    *,
    epochs: float | None = None,
) -> Outcome:
    """Compress a study's base model by one recipe and save it as an artefact.

    epochs: in place of the recipe's. A recipe that repeats the base model's training gets the settings of that training
    where the study does it.

    The base model comes from the study's own run folder when it ran with the same settings; otherwise it is prepared
    now, which trains it when the study names no weights. `say` is told the steps.
    Raises BadInput of all kinds, LossNotFinite, OutOfMemory.
    """
    from autoprune.study.worker import load_bench
    from autoprune.trial import run_trial

    config = self_contained(load(study, overrides).config)
    if config.model.weights is None:
        recipe = recipe.trained_like(config.train_base)
    if epochs is not None:
        recipe = recipe.model_copy(update={"epochs": epochs})
    with prepared(config, say, recipe) as run:
        bench = dataclasses.replace(load_bench(run), report=_counted(say))
        say(f"compressing with {recipe.preset or 'the recipe'}, {recipe.epochs:g} epochs of training")
        outcome = run_trial(recipe, bench, seed)
        base_metrics = read_json(run.base_file)["metrics"]
        save_outcome(config, bench, outcome, seed, out, base_metrics)
    return outcome


@contextlib.contextmanager
def prepared(config: StudyConfig, say: Say, recipe: Recipe) -> Iterator[RunFolder]:
    """Yield a run folder that holds the base model and its data: the study's own, or one that is gone afterwards.

    recipe: what will run on it, which says what evidence to gather.
    """
    own = RunFolder(default_run(config))
    if own.base_file.is_file() and own.study_file.is_file() and not differences(own.config(), config):
        say(f"base model of {own.path}")
        yield own
        return
    from autoprune.study.preparation import prepare_run

    with tempfile.TemporaryDirectory(prefix="autoprune-") as folder:
        run = RunFolder(Path(folder))
        run.freeze(config)
        prepare_run(run, config, _step_by_step(say), recipe)
        yield run


def _step_by_step(say: Say) -> events.Listener:
    told: set[str] = set()

    def listen(event: events.Event) -> None:
        if isinstance(event, events.Preparing) and event.step not in told:
            told.add(event.step)
            say(f"preparing: {event.step} {event.detail}".rstrip())
        elif isinstance(event, events.Warned):
            say(f"Warning: {event.message}")

    return listen


def _counted(say: Say) -> Callable[[int], None]:
    """Return a listener to an allocation that measures cut models: a line now and then."""

    def listen(measured: int) -> None:
        if measured == 1 or measured % _MEASURED_PER_LINE == 0:
            say(f"group sensitivities: {measured} cut model{'s' if measured > 1 else ''} measured")

    return listen


def save_outcome(
    config: StudyConfig, bench: Bench, outcome: Outcome, seed: int, out: Path, base_metrics: Mapping[str, float]
) -> None:
    """Save what a recipe gave on a study's base model as an artefact, with its quantised file if there is one."""
    from autoprune import artefact
    from autoprune.artefact import DataRecord, Manifest
    from autoprune.export import QUANTISED

    data = bench.data
    metrics = outcome.metrics | {f"base_{name}": value for name, value in base_metrics.items()}
    manifest = Manifest(
        model=config.model.model_copy(update={"weights": None}),
        recipe=outcome.recipe.plain(),
        metrics=metrics,
        seeds={"study": config.seed, "trial": seed},
        data=DataRecord(name=data.name, fingerprint=data.fingerprint, num_classes=data.num_classes, spec=config.data),
        task=config.task,
        study=config.name,
        notes=outcome.notes,
    )
    artefact.save(out, outcome.compressed, manifest)
    if outcome.finished.quantised is not None:
        write_bytes(out / QUANTISED, outcome.finished.quantised.content)
