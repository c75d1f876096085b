"""Everything before the first trial: data, base model, structure, checks, evidence.

`preflight` does what needs no training, for `autoprune check`; `prepare_run` fills the run folder that workers read.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from safetensors.torch import save_model

from autoprune import machine, rooms, threads
from autoprune.allocation import AllocationContext
from autoprune.base import Base, make_base
from autoprune.cost import latency_ms
from autoprune.cost.layer_times import LayerTimes
from autoprune.data import Data, build_data
from autoprune.errors import BadInput, UnreachableTarget
from autoprune.evidence import OF_A_RECIPE, Evidence
from autoprune.files import replacing, write_json, write_text
from autoprune.lowrank import LowRank
from autoprune.models import build_model, train_base
from autoprune.models.training import total_samples
from autoprune.recipe import Recipe, Target
from autoprune.repair import repair
from autoprune.search import objectives
from autoprune.search.baselines import build_baselines
from autoprune.search.nodes import Dimension
from autoprune.search.space import Space, load_space
from autoprune.seeds import derive_seed
from autoprune.study import events
from autoprune.study.config import StudyConfig, target_label, times_trials
from autoprune.study.forecast import Forecast, ForwardTime, forecast, time_forward
from autoprune.study.planner import warm_starts
from autoprune.study.run_folder import RunFolder
from autoprune.tasks import Task, build_task, check_fits, evaluate
from autoprune.trial import Bench, as_deployed, budget_of, certified, measure, metrics_of

_FAR_OFF = 0.1
"""Relative error of predicted latencies above which a study says so."""


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What is known of a study before anything is trained. `warnings` do not stop it."""

    config: StudyConfig
    base: Base
    data: Data
    space: Space
    dimensions: tuple[Dimension, ...]
    methods: tuple[tuple[str, str], ...]
    reachable_flops: tuple[float, float]
    forward: ForwardTime
    forecast: Forecast
    warnings: tuple[str, ...]


def preflight(config: StudyConfig, listen: events.Listener = events.ignore) -> Preflight:
    """Check a study without training: everything fits, every target can be met.

    Raises BadInput of all kinds: UnreachableTarget, BadData, TraceFailed, BadRecipe, UnknownName.
    """
    with threads.limited(config.executor.threads):
        return _preflight(config, listen)


def _preflight(config: StudyConfig, listen: events.Listener) -> Preflight:
    space = load_space(config.search_space)
    begun = _begun(config, space)
    listen(events.Preparing(step="data", detail=config.data.name))
    data, task = build_data(config.data), build_task(config.task)
    listen(events.Preparing(step="structure", detail=config.model.name))
    base = _base(config, data, task)
    warnings = _check(config, Bench(base, data, task, config.trial), space, listen)
    listen(events.Preparing(step="forecast", detail="timing the base model"))
    forward = time_forward(base, data, config.trial.torch_device())
    return Preflight(
        config=config,
        base=base,
        data=data,
        space=space,
        dimensions=space.dimensions(base.structure),
        methods=space.methods(),
        reachable_flops=base.structure.reachable_flops,
        forward=forward,
        forecast=forecast(config, data, forward, _measured(begun, base)),
        warnings=warnings,
    )


def prepare_run(run: RunFolder, config: StudyConfig, listen: events.Listener, recipe: Recipe | None = None) -> None:
    """Fill the run folder: base weights, structure, evidence, and what the base model measures. Once per folder.

    recipe: the only one that will run; by default evidence is gathered for all that the study can come to.
    Raises as `preflight` does, and LossNotFinite when the base model's training fails.
    """
    if run.base_file.is_file():
        return
    with threads.limited(config.executor.threads):
        _fill(run, config, listen, recipe)


def _fill(run: RunFolder, config: StudyConfig, listen: events.Listener, recipe: Recipe | None) -> None:
    space = load_space(config.search_space)
    listen(events.Preparing(step="data", detail=config.data.name))
    data, task = build_data(config.data), build_task(config.task)
    listen(events.Preparing(step="structure", detail=config.model.name))
    base = _base(config, data, task)
    # bad input shows before minutes are spent on training
    for warning in _check(config, Bench(base, data, task, config.trial, run.evidence), space, listen):
        listen(events.Warned(message=warning))
    _train(config, base, data, task, listen)
    with replacing(run.base_weights) as temporary:
        save_model(base.model, str(temporary))
    write_text(run.structure_file, base.structure.to_json())
    bench = Bench(Base(base.model, base.structure, base.spec), data, task, config.trial, run.evidence)
    _gather(_needs(config, space) if recipe is None else recipe.needs, bench, listen)
    listen(events.Preparing(step="base", detail="measuring"))
    write_json(run.machine_file, machine.describe())
    write_json(run.base_file, {"fingerprint": bench.base.fingerprint, "metrics": _measure_base(config, bench)})


def _base(config: StudyConfig, data: Data, task: Task) -> Base:
    model = build_model(config.model, data.num_classes, seed=derive_seed(config.seed, "model"))
    check_fits(model, data, task)
    return make_base(
        model,
        data.example_inputs,
        spec=config.model,
        exclude=config.structure.exclude,
        round_to=config.structure.round_to,
    )


def _check(config: StudyConfig, bench: Bench, space: Space, listen: events.Listener) -> tuple[str, ...]:
    base = bench.base
    rooms_used = {room for room, _ in space.methods()}
    shortens = "depth" in rooms_used and bool(base.structure.blocks)
    if not base.structure.groups and not rooms_used & {"lowrank", "sparsity"} and not shortens:
        reasons = "; ".join(f"{f.name}: {f.reason}" for f in base.structure.frozen[:5])
        raise BadInput(f"nothing of model {config.model.name!r} can be cut: {reasons or 'it has no groups'}")
    space.check(base.structure)
    low_rank = [name for room, name in space.methods() if room == "lowrank"]
    if any(target.latency_fraction is not None for target in config.targets):
        listen(events.Preparing(step="latency", detail="timing layers at many widths"))
    found = [_reach(target, bench, low_rank, shortens) for target in config.targets]
    if any(target.latency_fraction is not None for target in config.targets):
        found.append(_told(bench.layer_times))
    if "depth" in rooms_used and not shortens:
        found.append("no block of the model can be skipped; recipes with depth will fail there")
    return tuple(warning for warning in found if warning is not None)


def _told(times: LayerTimes) -> str | None:
    """Return a warning about predictions of latency that are far off."""
    if times.error <= _FAR_OFF:
        return None
    return (
        f"targets of latency: the times of models that were cut at random are predicted with a mean error of "
        f"{times.error:.0%}; other work on this machine may be the cause. What models take is measured in the end"
    )


def _reach(target: Target, bench: Bench, low_rank: Sequence[str], shortens: bool) -> str | None:
    """Return a warning when only low rank or depth meets a target. Raises UnreachableTarget when nothing does."""
    base = bench.base
    failure = _try(target, bench, None)
    if failure is None:
        return None
    for name in low_rank:
        if _try(target, bench, cast(LowRank, rooms.build("lowrank", name))) is None:
            return f"target {target_label(target)} is met only with low rank; recipes without it will fail there"
    if shortens and _try(target, bench, None, [block.name for block in base.structure.blocks]) is None:
        return f"target {target_label(target)} is met only with depth; recipes without it will fail there"
    lowest, _ = base.structure.reachable_flops
    raise UnreachableTarget(
        f"target {target_label(target)} cannot be met by cutting channels"
        f"{' and factorising layers' if low_rank else ''}{' and skipping blocks' if shortens else ''}: {failure}. "
        f"Channels alone reach {lowest:.3f} to 1 of the FLOPs at most; raise the target, or free more of the model "
        "(structure.exclude, structure.round_to)"
    )


def _try(target: Target, bench: Bench, low_rank: LowRank | None, skip: Sequence[str] = ()) -> str | None:
    """Return why a uniform recipe, without some blocks, does not meet a target, or None when it does."""
    recipe, structure = Recipe(), bench.base.structure.without_blocks(skip)
    ones = {g.name: torch.ones(g.size) for g in structure.groups}
    try:
        repair(
            structure,
            budget_of(bench, target),
            path=recipe.allocation.path(AllocationContext.of(ones, structure)) if ones else None,
            low_rank=low_rank,
            min_keep_fraction=recipe.min_keep_fraction,
        )
    except UnreachableTarget as error:
        return str(error).rstrip(".")
    return None


def _train(config: StudyConfig, base: Base, data: Data, task: Task, listen: events.Listener) -> None:
    if config.model.weights is not None:
        return
    total = total_samples(data, config.train_base)
    last = -math.inf

    def progress(done: int, loss: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > 0.2 or done >= total:
            last = now
            listen(events.Preparing(step="base", detail=f"training, loss {loss:.3f}", done=done, total=total))

    device = config.trial.torch_device()
    train_base(
        base.model,
        data,
        task,
        config.train_base,
        seed=derive_seed(config.seed, "base"),
        progress=progress,
        device=device,
    )
    base.model.cpu().eval()


def _needs(config: StudyConfig, space: Space) -> frozenset[str]:
    """Return the kinds of evidence that any recipe of the study can ask for."""
    needs = {kind for method in space.methods() for kind in rooms.method_class(*method).needs}
    return frozenset(needs | {kind for recipe in _begun(config, space) for kind in recipe.needs})


def _measured(recipes: Sequence[Recipe], base: Base) -> int:
    """Return the samples that allocations measure on; what one of them measured is known at every target."""
    allocations = [recipe.allocation for recipe in recipes if recipe.criterion is not None]
    once = {json.dumps(allocation.config()): allocation for allocation in allocations}
    return sum(allocation.measured_samples(len(base.structure.groups)) for allocation in once.values())


def _begun(config: StudyConfig, space: Space) -> list[Recipe]:
    """Return the recipes that run first, but those of an earlier study. Raises BadInput, BadRecipe, UnknownName."""
    baselines = [one.recipe for one in build_baselines(config.baselines)]
    return baselines + ([] if isinstance(config.warm_start, str) else warm_starts(config, space))


def _gather(needs: frozenset[str], bench: Bench, listen: events.Listener) -> None:
    """Gather evidence once for all workers."""
    kinds = frozenset(Evidence(kind) for kind in needs) - {Evidence.WEIGHTS} - OF_A_RECIPE
    if kinds:
        listen(events.Preparing(step="evidence", detail=", ".join(sorted(kinds))))
    for kind, reason in bench.evidence.prepare(kinds).items():
        listen(events.Warned(message=f"recipes that need {kind} will fail, since {reason}"))


def _measure_base(config: StudyConfig, bench: Bench) -> dict[str, float]:
    metrics = metrics_of(measure(bench.model, bench))
    if times_trials(config):
        metrics["latency_ms"] = latency_ms(bench.model, bench.data.train.one_sample(bench.device))
    if objectives.of_deployed(config.objectives):
        metrics = as_deployed(metrics, bench.model, bench)
    if config.trial.certified_epsilon is not None:
        metrics |= certified(bench.model, bench, config.trial.certified_epsilon).metrics
    if bench.data.test is not None:
        size = bench.settings.eval_batch_size
        found = evaluate(bench.model, bench.data.test, bench.task, size, device=bench.device)
        metrics["test_accuracy"] = found.accuracy
    return metrics
