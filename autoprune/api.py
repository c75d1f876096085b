"""The Python API: what the command line does, in a few names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoprune.base import Base, make_base
from autoprune.data import Data
from autoprune.data.user import data_of
from autoprune.recipe import Recipe
from autoprune.settings import TrialSettings
from autoprune.specs import DataSpec
from autoprune.tasks import Task, build_task, check_fits
from autoprune.trial import Bench, Outcome, run_trial

if TYPE_CHECKING:
    from torch import nn

    from autoprune.report.front import Front
    from autoprune.study.config import StudyConfig


def compress(
    model: nn.Module | Base,
    data: Data | Mapping[str, Any],
    recipe: Recipe | Mapping[str, Any] | None = None,
    *,
    target_flops: float | None = None,
    sparsity: float | None = None,
    task: Task | None = None,
    seed: int = 0,
    settings: TrialSettings | None = None,
) -> Outcome:
    """Compress a trained model by one recipe; the model itself is not changed.

    data: a Data, or a mapping {"train": ..., "validation": ..., "test": ...} of map-style torch data sets.
    recipe: a Recipe or plain data; by default the lowest L1 norms of every group go and one epoch is finetuned.
    target_flops: fraction of the base model's FLOPs, in place of the recipe's target.
    sparsity: share of single weights that become zero, in place of what the recipe's sparsity method says.
    Raises TraceFailed, BadData, BadRecipe, UnreachableTarget, LossNotFinite, OutOfMemory.
    """
    chosen = Recipe.parse(recipe or {})
    if target_flops is not None:
        chosen = chosen.with_target(flops_fraction=target_flops)
    if sparsity is not None:
        chosen = chosen.with_sparsity(sparsity)
    ready = data if isinstance(data, Data) else data_of(data, DataSpec(name="python:data"))
    base = model if isinstance(model, Base) else make_base(model, ready.example_inputs)
    kind = task or build_task()
    check_fits(base.model, ready, kind)
    return run_trial(chosen, Bench(base, ready, kind, settings or TrialSettings()), seed)


def launch(study: str | Path | Mapping[str, Any] | StudyConfig, *, run_dir: str | Path | None = None) -> Front:
    """Run a study, or resume it when its run folder exists already, and return the front.

    study: a YAML file, the name of a shipped study, plain data, or a StudyConfig.
    """
    from autoprune.report.front import Front
    from autoprune.study.launch import launch as run

    return Front.of(run(study, run_dir=run_dir))
