"""One recipe on a study's model, without a search."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoprune.files import read_json
from autoprune.study import events
from autoprune.study.config import StudyConfig, load
from autoprune.study.run_folder import RunFolder, default_run, differences, self_contained

if TYPE_CHECKING:
    from autoprune.recipe import Recipe
    from autoprune.trial import Bench, Outcome

Say = Callable[[str], None]


def compress_study(study: str, recipe: Recipe, seed: int, out: Path, overrides: Mapping[str, Any], say: Say) -> Outcome:
    """Compress a study's base model by one recipe and save it as an artefact.

    The base model comes from the study's own run folder when it ran with the same settings; otherwise it is prepared
    now, which trains it when the study names no weights. `say` is told the steps.
    Raises BadInput of all kinds, LossNotFinite, OutOfMemory.
    """
    from autoprune.study.worker import load_bench
    from autoprune.trial import run_trial

    config = self_contained(load(study, overrides).config)
    with _prepared(config, say) as run:
        bench = load_bench(run)
        say(f"compressing with {recipe.preset or 'the recipe'}, {recipe.epochs:g} epochs of training")
        outcome = run_trial(recipe, bench, seed)
        base_metrics = read_json(run.base_file)["metrics"]
        save_outcome(config, bench, outcome, seed, out, base_metrics)
    return outcome


@contextlib.contextmanager
def _prepared(config: StudyConfig, say: Say) -> Iterator[RunFolder]:
    own = RunFolder(default_run(config))
    if own.base_file.is_file() and own.study_file.is_file() and not differences(own.config(), config):
        say(f"base model of {own.path}")
        yield own
        return
    from autoprune.study.preparation import prepare_run

    with tempfile.TemporaryDirectory(prefix="autoprune-") as folder:
        run = RunFolder(Path(folder))
        run.freeze(config)
        prepare_run(run, config, _step_by_step(say))
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


def save_outcome(
    config: StudyConfig, bench: Bench, outcome: Outcome, seed: int, out: Path, base_metrics: Mapping[str, float]
) -> None:
    """Save what a recipe gave on a study's base model as an artefact."""
    from autoprune import artefact
    from autoprune.artefact import DataRecord, Manifest

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
