"""One trial: skip blocks, regularise, score, allocate, repair, cut, factorise, sparsify, recover, measure.

`run_trial` is all of it, top to bottom. A study calls its parts rung by rung: `prepare` is rung 0, `train_on` one
rung's training, `measure` follows each.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from autoprune.allocation import AllocationContext
from autoprune.base import Base, fresh_model
from autoprune.compressed import Compressed, Factor, factorise
from autoprune.cost import count_flops, count_params, count_sparse_flops, sparsity_of
from autoprune.data import Data
from autoprune.errors import BadRecipe, NotApplicable
from autoprune.evidence import Evidence, ModelEvidence, Source
from autoprune.graph import Structure
from autoprune.masks import Hold, prunable, zero
from autoprune.normalisation import normalise
from autoprune.probe import Probe
from autoprune.recipe import Recipe, Target
from autoprune.recovery import Cut, Recovery, RecoveryContext, RecoveryCost
from autoprune.regularisers import RegulariserContext
from autoprune.repair import Amounts, Budget, repair
from autoprune.schedules import Step
from autoprune.seeds import derive_seed
from autoprune.settings import TrialSettings
from autoprune.shortening import shorten
from autoprune.sparsity import Sparsified, SparsityContext
from autoprune.tasks import Task, evaluate


@dataclass(frozen=True)
class Bench:
    """Everything a trial needs besides its recipe; made once per process and shared by its trials.

    report: told how many cut models an allocation has measured so far.
    """

    base: Base
    data: Data
    task: Task
    settings: TrialSettings = field(default_factory=TrialSettings)
    evidence_folder: Path | None = None
    report: Callable[[int], None] | None = None

    @functools.cached_property
    def device(self) -> torch.device:
        """Where trials run."""
        return self.settings.torch_device()

    @functools.cached_property
    def model(self) -> nn.Module:
        """The base model where trials run, in eval mode. Not to be changed."""
        return self.laid_out(self.base.model.to(self.device).eval())

    def laid_out(self, model: nn.Module) -> nn.Module:
        """Return the model, in place, in the memory layout that the settings ask for."""
        if self.settings.channels_last:
            return model.to(memory_format=torch.channels_last)
        return model

    @functools.cached_property
    def source(self) -> Source:
        """Where evidence comes from."""
        s = self.settings
        return Source(
            data=self.data,
            task=self.task,
            batches=s.evidence_batches,
            batch_size=s.evidence_batch_size,
            device=self.device,
        )

    @functools.cached_property
    def evidence(self) -> ModelEvidence:
        """Evidence about the base model, shared by all trials."""
        return ModelEvidence(
            self.model,
            self.base.structure,
            self.source,
            seed=0,
            cache=self.evidence_folder,
            fingerprint=self.base.fingerprint,
        )

    def fresh(self, seed: int) -> nn.Module:
        """Return a model of the base model's architecture with new weights, where trials run, in eval mode."""
        return self.laid_out(fresh_model(self.base, self.data.num_classes, seed).to(self.device).eval())

    def recovery_context(self, seed: int) -> RecoveryContext:
        """Return what recovery methods work with."""
        return RecoveryContext(
            data=self.data,
            task=self.task,
            teacher=self.model,
            seed=seed,
            device=self.device,
            mixed_precision=self.settings.mixed_precision,
            fresh=self.fresh,
        )


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a piece of work took. `forward_seconds` is the part spent in calibration and evaluation passes."""

    trained_samples: int = 0
    forward_samples: int = 0
    seconds: float = 0.0
    forward_seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            trained_samples=self.trained_samples + other.trained_samples,
            forward_samples=self.forward_samples + other.forward_samples,
            seconds=self.seconds + other.seconds,
            forward_seconds=self.forward_seconds + other.forward_seconds,
        )


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A trial at rung 0: cut, factorised and calibrated, not yet finetuned.

    `kept` are the base model's units that stay, by group; groups inside skipped blocks are left out. `notes` say which
    groups stayed whole and why, and which blocks were skipped.
    """

    compressed: Compressed
    kept: Mapping[str, list[int]]
    amounts: Amounts
    notes: tuple[str, ...]
    cost: Cost


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a model is worth and costs. Accuracy in 0..1; FLOPs (2 x MACs) of one sample, counted on the model.

    `flops` are those of dense kernels, `sparse_flops` what is left of them when no product with a zero weight is
    computed. `sparsity` is the share of zeros among the weights of convolutions and linear layers.
    """

    accuracy: float
    loss: float
    count: int
    flops: int
    params: int
    flops_fraction: float
    params_fraction: float
    sparse_flops: int
    sparse_flops_fraction: float
    sparsity: float
    cost: Cost


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of one recipe."""

    recipe: Recipe
    compressed: Compressed
    amounts: Amounts
    validation: Measurement
    before_training: Measurement
    notes: tuple[str, ...]
    cost: Cost

    @property
    def model(self) -> nn.Module:
        """The compressed model, in eval mode."""
        return self.compressed.model

    @property
    def metrics(self) -> dict[str, float]:
        """Accuracy and cost of the model as plain numbers."""
        return metrics_of(self.validation)


def metrics_of(measured: Measurement) -> dict[str, float]:
    """Return a measurement as plain numbers, as records and artefacts keep them."""
    names = (
        "accuracy",
        "loss",
        "count",
        "flops",
        "params",
        "flops_fraction",
        "params_fraction",
        "sparse_flops",
        "sparse_flops_fraction",
        "sparsity",
    )
    return {name: float(getattr(measured, name)) for name in names}


def run_trial(recipe: Recipe, bench: Bench, seed: int) -> Outcome:
    """Compress by one recipe, train for its `epochs`, and measure on the validation split.

    Raises UnreachableTarget, BadRecipe, LossNotFinite, OutOfMemory.
    """
    prepared = prepare(recipe, bench, seed)
    model = prepared.compressed.model
    before = measure(model, bench)
    compressed, trained = train_compressed(
        prepared.compressed, recipe, bench, derive_seed(seed, "train"), recipe.epochs
    )
    after = measure(model, bench) if recipe.epochs > 0 else before
    return Outcome(
        recipe=recipe,
        compressed=compressed,
        amounts=prepared.amounts,
        validation=after,
        before_training=before,
        notes=prepared.notes,
        cost=prepared.cost + before.cost + trained + (after.cost if after is not before else Cost()),
    )


def prepare(recipe: Recipe, bench: Bench, seed: int) -> Prepared:
    """Cut by the recipe's schedule down to its target, factorise, zero single weights, recover without training.

    A regulariser trains before each cut; scores are then those of the model that it made.

    Raises UnreachableTarget when the recipe cannot meet its target, BadRecipe when it suits no group of the model.
    """
    recipe.check_target()
    began, cost = time.perf_counter(), Cost()
    state, evidence = _start(recipe, bench, seed)
    notes, told = dict[str, str](), list[str]()
    if recipe.depth is not None:
        shortening = shorten(recipe, recipe.depth, evidence, _budget(bench, recipe.target))
        recipe, told = shortening.recipe, [shortening.note]
        state = state.without(shortening.blocks)
        bench.laid_out(state.model)
        if shortening.blocks and recipe.criterion is not None:
            # channels are scored on the model as it is now, its statistics settled
            cost += _settle(state.model, recipe, bench, derive_seed(seed, "depth"))
            evidence = ModelEvidence(state.model, state.structure, bench.source, seed=seed)
    steps = recipe.schedule.steps()
    chooser = _Chooser(recipe, bench, seed, notes)
    for i, step in enumerate(steps):
        chosen: _Chosen | None = None
        if recipe.regulariser is not None:
            own = derive_seed(seed, "regularise", i)
            state, chosen, spent = _regularised(recipe, bench, state, chooser, step, own, first=i == 0)
            cost += spent
            evidence = ModelEvidence(state.model, state.structure, bench.source, seed=derive_seed(seed, "shaped", i))
        amounts, keep = chosen or chooser.of(state, evidence, step)
        chooser.strength += amounts.strength
        before = state
        state = state.cut(keep)
        bench.laid_out(state.model)
        cost += _correct(state.model, recipe, bench, seed, before.structure, evidence, keep)
        if i + 1 < len(steps):
            cost += _settle(state.model, recipe, bench, seed)
            epochs = step.epochs + step.samples / len(bench.data.train)
            cost += train_on(state.model, recipe, bench, derive_seed(seed, "step", i), epochs)
            evidence = ModelEvidence(state.model, state.structure, bench.source, seed=derive_seed(seed, "score", i))
    cost += _run([r for r in recipe.recovery if r.resets], state.model, bench.recovery_context(seed))
    bench.laid_out(state.model)
    factors: tuple[Factor, ...] = ()
    if recipe.low_rank is not None:
        factors = factorise(state.model, recipe.low_rank, amounts.ranks)
        bench.laid_out(state.model)
    sparse, spent_on_masks = _sparsified(state.model, recipe, bench, seed)
    cost += spent_on_masks
    cost += _settle(state.model, recipe, bench, seed)
    cost += chooser.cost
    # a recovery that gives weights new values knows nothing of masks
    zero(state.model, sparse.masks)
    selection = bench.base.structure.selection(state.kept, state.skipped)
    spent = Cost(
        trained_samples=cost.trained_samples,
        forward_samples=cost.forward_samples,
        seconds=time.perf_counter() - began,
        forward_seconds=cost.forward_seconds,
    )
    return Prepared(
        compressed=Compressed(model=state.model, selection=selection, factors=factors, masks=sparse.masks),
        kept=state.kept,
        amounts=dataclasses.replace(amounts, skipped=state.skipped),
        notes=(*told, *(f"{group} stays whole: {reason}" for group, reason in notes.items()), *sparse.notes),
        cost=spent,
    )


def train_compressed(
    compressed: Compressed, recipe: Recipe, bench: Bench, seed: int, epochs: float
) -> tuple[Compressed, Cost]:
    """Train a compressed model in place as `train_on` does, its masks held or moved; return it with its masks now."""
    if recipe.sparsity is None or not compressed.masks:
        return compressed, train_on(compressed.model, recipe, bench, seed, epochs)
    hook = recipe.sparsity.hold(compressed.masks, derive_seed(seed, "masks"))
    cost = train_on(compressed.model, recipe, bench, seed, epochs, hook)
    return dataclasses.replace(compressed, masks=hook.masks), cost


def train_on(
    model: nn.Module, recipe: Recipe, bench: Bench, seed: int, epochs: float, hook: Hold | None = None
) -> Cost:
    """Train a compressed model in place for `epochs` by the recipe's training recovery, if it has one."""
    method = next((r for r in recipe.recovery if r.trains), None)
    if method is None or epochs <= 0:
        return Cost()
    began = time.perf_counter()
    spent = method.recover(model, dataclasses.replace(bench.recovery_context(seed), hook=hook), epochs)
    return _cost_of(spent, time.perf_counter() - began, forward=False)


def measure(model: nn.Module, bench: Bench, samples: int | None = None) -> Measurement:
    """Evaluate on the validation split, or on the same `samples` of it every time, and count the cost."""
    began = time.perf_counter()
    found = evaluate(model, bench.data.validation, bench.task, bench.settings.eval_batch_size, limit=samples)
    forward_seconds = time.perf_counter() - began
    inputs = _one_sample(bench)
    flops, params = count_flops(model, inputs), count_params(model)
    sparse_flops = count_sparse_flops(model, inputs, flops)
    return Measurement(
        accuracy=found.accuracy,
        loss=found.loss,
        count=found.count,
        flops=flops,
        params=params,
        flops_fraction=flops / bench.base.flops,
        params_fraction=params / bench.base.params,
        sparse_flops=sparse_flops,
        sparse_flops_fraction=sparse_flops / bench.base.flops,
        sparsity=sparsity_of(model),
        cost=Cost(
            forward_samples=found.count,
            seconds=time.perf_counter() - began,
            forward_seconds=forward_seconds,
        ),
    )


def _sparsified(model: nn.Module, recipe: Recipe, bench: Bench, seed: int) -> tuple[Sparsified, Cost]:
    """Zero single weights, in place, as the recipe says."""
    method = recipe.sparsity
    if method is None:
        return Sparsified(masks={}), Cost()
    if not prunable(model):
        raise BadRecipe(f"{type(model).__name__} has no convolution or linear layer whose weights could become zero")
    began, total = time.perf_counter(), Cost()

    def train(model: nn.Module, epochs: float, hook: Hold, *purpose: str | int) -> None:
        nonlocal total
        if not any(r.trains for r in recipe.recovery):
            raise BadRecipe(
                f"sparsity method {method.name!r} trains the model, but the recipe has no recovery that says how; add "
                "finetune or distillation"
            )
        total += train_on(model, recipe, bench, derive_seed(seed, "sparsity", *purpose), epochs, hook)

    context = SparsityContext(
        data=bench.data, task=bench.task, seed=derive_seed(seed, "sparsity"), device=bench.device, train=train
    )
    found = method.sparsify(model, context)
    return found, Cost(
        trained_samples=total.trained_samples,
        forward_samples=total.forward_samples + found.forward_samples,
        seconds=time.perf_counter() - began,
    )


def _one_sample(bench: Bench) -> object:
    inputs, _ = next(bench.data.train.batches(1, limit=1, device=bench.device))
    return inputs


def _start(recipe: Recipe, bench: Bench, seed: int) -> tuple[_State, ModelEvidence]:
    """Return the model that everything begins with, uncut, and evidence about it."""
    structure = bench.base.structure
    units = {g.name: list(range(g.size)) for g in structure.groups}
    if recipe.start == "base":
        return _State(bench.model, structure, units), bench.evidence.with_seed(seed)
    model = bench.fresh(derive_seed(seed, "start"))
    return _State(model, structure, units), ModelEvidence(model, structure, bench.source, seed=seed)


_Chosen = tuple[Amounts, dict[str, list[int]]]


class _Chooser:
    """Chooses what each cut of a trial keeps: amounts, and kept units by group.

    `strength` is what the cuts before have spent. What the allocation measures, it measures before the first cut.
    """

    def __init__(self, recipe: Recipe, bench: Bench, seed: int, notes: dict[str, str]) -> None:
        self.strength = 0.0
        self._recipe, self._bench, self._seed, self._notes = recipe, bench, seed, notes
        self._earlier: Mapping[str, Tensor] = {}
        self._probe: Probe | None = None
        self._probes: list[Probe] = []

    @property
    def cost(self) -> Cost:
        """What measuring took."""
        return sum((_spent_on(probe) for probe in self._probes), Cost())

    def of(self, state: _State, evidence: ModelEvidence, step: Step) -> _Chosen:
        """Choose for the cut that comes now."""
        scores = smoothed(_scores(self._recipe, state.structure, evidence, self._notes), self._earlier, step.momentum)
        self._probe = self._probe or self._probe_of(state, scores, evidence)
        amounts, keep = self._repaired(state, scores, evidence, self._probe, step)
        self._earlier = {name: score[keep[name]] for name, score in scores.items()}
        return amounts, keep

    def ahead(self, state: _State, step: Step, seed: int) -> _Chosen:
        """Choose for a model that is still to be trained; measurements of it serve this choice only."""
        evidence = ModelEvidence(state.model, state.structure, self._bench.source, seed=seed)
        scores = _scores(self._recipe, state.structure, evidence, self._notes)
        return self._repaired(state, scores, evidence, self._probe_of(state, scores, evidence), step)

    def _probe_of(self, state: _State, scores: Mapping[str, Tensor], evidence: ModelEvidence) -> Probe | None:
        probe = _probe(self._recipe, self._bench, state, scores, evidence, self._seed)
        self._probes += [probe] if probe is not None else []
        return probe

    def _repaired(
        self,
        state: _State,
        scores: Mapping[str, Tensor],
        evidence: ModelEvidence,
        probe: Probe | None,
        step: Step,
    ) -> _Chosen:
        context = _allocation_context(
            self._recipe, step.progress, self._bench, state.structure, scores, evidence, probe
        )
        amounts = _repair(self._recipe, self._bench, context, step.progress, self.strength)
        return amounts, _highest(scores, amounts.counts)


def _regularised(
    recipe: Recipe, bench: Bench, state: _State, chooser: _Chooser, step: Step, seed: int, *, first: bool
) -> tuple[_State, _Chosen | None, Cost]:
    """Return the state with a shaped model, and what the cut has to keep if that was chosen on the way."""
    assert recipe.regulariser is not None
    began = time.perf_counter()
    model = copy.deepcopy(state.model) if state.model is bench.model else state.model
    chosen: list[_Chosen] = []

    def choose(model: nn.Module) -> dict[str, list[int]]:
        chosen.append(chooser.ahead(dataclasses.replace(state, model=model), step, seed))
        return chosen[-1][1]

    context = RegulariserContext(
        structure=state.structure,
        choose=choose,
        data=bench.data,
        task=bench.task,
        seed=seed,
        device=bench.device,
        mixed_precision=bench.settings.mixed_precision,
        first=first,
    )
    shaped = recipe.regulariser.shape(model, context)
    cost = Cost(trained_samples=shaped.trained_samples, seconds=time.perf_counter() - began)
    return dataclasses.replace(state, model=model), chosen[-1] if shaped.as_chosen else None, cost


@dataclass(frozen=True)
class _State:
    """The model between two cuts; `kept` are the base model's units that are still there, `skipped` its blocks that
    are not."""

    model: nn.Module
    structure: Structure
    kept: Mapping[str, list[int]]
    skipped: tuple[str, ...] = ()

    def cut(self, keep: Mapping[str, list[int]]) -> _State:
        kept = {name: [units[i] for i in keep[name]] if name in keep else units for name, units in self.kept.items()}
        return _State(self.structure.cut(self.model, keep), self.structure.restrict(keep), kept, self.skipped)

    def without(self, blocks: tuple[str, ...]) -> _State:
        less = self.structure.without_blocks(blocks)
        kept = {name: units for name, units in self.kept.items() if name in less.names}
        return _State(self.structure.skip_blocks(self.model, blocks), less, kept, (*self.skipped, *blocks))


def _scores(recipe: Recipe, structure: Structure, evidence: ModelEvidence, notes: dict[str, str]) -> dict[str, Tensor]:
    if recipe.criterion is None:
        return {}
    scores: dict[str, Tensor] = {}
    for group in structure.groups:
        try:
            score = recipe.criterion.score(group, evidence)
        except NotApplicable as reason:
            notes[group.name] = str(reason)
            continue
        scores[group.name] = _checked(score, group.size, recipe.criterion.name, group.name)
    if not scores:
        reasons = "; ".join(sorted(set(notes.values()))[:3]) or "the model has no group that can be cut"
        raise BadRecipe(f"criterion {recipe.criterion.name!r} scores no group of this model: {reasons}")
    return normalise(recipe.normalisation, scores)


def smoothed(scores: Mapping[str, Tensor], earlier: Mapping[str, Tensor], momentum: float) -> dict[str, Tensor]:
    """Return momentum * earlier + (1 - momentum) * scores, by group (C,); scores where none are earlier."""
    return {
        name: momentum * earlier[name] + (1 - momentum) * score if name in earlier else score
        for name, score in scores.items()
    }


def _checked(score: Tensor, size: int, criterion: str, group: str) -> Tensor:
    if score.shape != (size,) or not bool(torch.isfinite(score).all()):
        raise BadRecipe(
            f"criterion {criterion!r} gave scores of shape {tuple(score.shape)} for the {size} units of group "
            f"{group!r}, finite: {bool(torch.isfinite(score).all())}; they must be ({size},) and finite"
        )
    return score


def _probe(
    recipe: Recipe,
    bench: Bench,
    state: _State,
    scores: Mapping[str, Tensor],
    evidence: ModelEvidence,
    seed: int,
) -> Probe | None:
    """Return what measures cut models for the allocation, if it asks for that."""
    if Evidence.GROUP_SENSITIVITIES not in recipe.allocation.needs:
        return None
    return Probe(
        model=state.model,
        structure=state.structure,
        evidence=evidence,
        source=bench.source,
        choose=functools.partial(_highest, scores),
        corrections=[r for r in recipe.recovery if not r.trains],
        context=bench.recovery_context(seed),
        batch_size=bench.settings.eval_batch_size,
        report=bench.report,
    )


def _spent_on(probe: Probe) -> Cost:
    """Return what measurements took that no trial had made before."""
    return Cost(forward_samples=probe.forward_samples, seconds=probe.seconds, forward_seconds=probe.seconds)


def _allocation_context(
    recipe: Recipe,
    progress: float,
    bench: Bench,
    structure: Structure,
    scores: Mapping[str, Tensor],
    evidence: ModelEvidence,
    probe: Probe | None,
) -> AllocationContext:
    target = recipe.target.at(progress)
    flops, params = target.flops_fraction, target.params_fraction
    return AllocationContext(
        scores=scores,
        structure=structure,
        full_sizes={g.name: g.size for g in bench.base.structure.groups},
        cost=structure.total_params if flops is None else structure.total_flops,
        budget=bench.base.params * (params or 1.0) if flops is None else bench.base.flops * flops,
        min_keep_fraction=recipe.min_keep_fraction,
        evidence=evidence,
        measure=probe,
    )


def _repair(
    recipe: Recipe, bench: Bench, context: AllocationContext, progress: float, strength_before: float
) -> Amounts:
    return repair(
        context.structure,
        _budget(bench, recipe.target.at(progress)),
        path=recipe.allocation.path(context) if context.scores else None,
        low_rank=recipe.low_rank,
        min_keep_fraction=recipe.min_keep_fraction,
        full_sizes=context.full_sizes,
        strength_before=strength_before,
    )


def _budget(bench: Bench, target: Target) -> Budget:
    return Budget(flops=bench.base.flops, params=bench.base.params, target=target)


def _highest(scores: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, list[int]]:
    """Return the units with the highest scores of every group counted; of equal ones those with the lower index."""
    keep = {}
    for name, score in scores.items():
        if name in counts:
            order = torch.sort(score, descending=True, stable=True).indices
            keep[name] = sorted(order[: counts[name]].tolist())
    return keep


def _correct(
    model: nn.Module,
    recipe: Recipe,
    bench: Bench,
    seed: int,
    structure: Structure,
    evidence: ModelEvidence,
    keep: Mapping[str, list[int]],
) -> Cost:
    """Run the recovery methods that correct layers right after a cut. `structure`, `evidence`: before the cut."""
    methods = [r for r in recipe.recovery if r.follows_cut]
    if not methods or not keep:
        return Cost()
    cut = Cut(structure=structure, evidence=evidence, selection=structure.selection(keep))
    return _run(methods, model, dataclasses.replace(bench.recovery_context(seed), cut=cut))


def _settle(model: nn.Module, recipe: Recipe, bench: Bench, seed: int) -> Cost:
    """Run the other recovery methods that need no training."""
    methods = [r for r in recipe.recovery if not (r.trains or r.follows_cut or r.resets)]
    return _run(methods, model, bench.recovery_context(derive_seed(seed, "settle")))


def _run(methods: Sequence[Recovery], model: nn.Module, context: RecoveryContext) -> Cost:
    total = Cost()
    for method in methods:
        began = time.perf_counter()
        spent = method.recover(model, context, 0.0)
        total += _cost_of(spent, time.perf_counter() - began, forward=not method.follows_cut)
    return total


def _cost_of(spent: RecoveryCost, seconds: float, *, forward: bool) -> Cost:
    return Cost(
        trained_samples=spent.trained_samples,
        forward_samples=spent.forward_samples,
        seconds=seconds,
        forward_seconds=seconds if forward else 0.0,
    )
