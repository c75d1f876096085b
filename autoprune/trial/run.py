"""One trial: from skipped blocks and cuts over low rank, masks and recovery to what is measured and quantised.

`run_trial` is all of it, top to bottom. A study calls its parts rung by rung: `prepare` is rung 0, `train_on` one
rung's training, `measure` follows each.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from autoprune.compressed import Compressed, Factor, Implant, exchange, factorise, implant
from autoprune.evidence import ModelEvidence
from autoprune.lowrank import LowRankContext
from autoprune.masks import zero
from autoprune.programs import need_onnx
from autoprune.recipe import Recipe
from autoprune.repair import Amounts
from autoprune.seeds import derive_seed
from autoprune.shortening import shorten
from autoprune.trial.bench import Bench, Cost
from autoprune.trial.choosing import Chooser, Chosen, budget_of
from autoprune.trial.finishing import Finished, finish
from autoprune.trial.measuring import Measurement, measure, metrics_of
from autoprune.trial.recovering import correct, reset, settle, train_compressed, train_on
from autoprune.trial.shaping import Trainer, regularised, sparsified
from autoprune.trial.state import State, start


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
class Outcome:
    """The result of one recipe. validation: of the float model; `finished` is what else was measured."""

    recipe: Recipe
    compressed: Compressed
    amounts: Amounts
    validation: Measurement
    before_training: Measurement
    notes: tuple[str, ...]
    cost: Cost
    finished: Finished = field(default_factory=Finished)

    @property
    def model(self) -> nn.Module:
        """The compressed model, in eval mode."""
        return self.compressed.model

    @property
    def metrics(self) -> dict[str, float]:
        """Accuracy and cost of the model as plain numbers, and what else was measured, under names of their own."""
        return metrics_of(self.validation) | dict(self.finished.metrics)


def run_trial(recipe: Recipe, bench: Bench, seed: int) -> Outcome:
    """Compress by one recipe, train for its `epochs`, and measure on the validation split.

    Raises UnreachableTarget, BadRecipe, LossNotFinite, OutOfMemory; MissingDependency, Failure, CheckFailed where the
    recipe quantises.
    """
    if recipe.quantisation is not None:
        need_onnx(f"quantising by {recipe.quantisation.name}")
    prepared = prepare(recipe, bench, seed)
    model = prepared.compressed.model
    before = measure(model, bench)
    compressed, trained = train_compressed(
        prepared.compressed, recipe, bench, derive_seed(seed, "train"), recipe.epochs
    )
    after = measure(model, bench) if recipe.epochs > 0 else before
    finished = finish(model, recipe, bench, seed)
    return Outcome(
        recipe=recipe,
        compressed=compressed,
        amounts=prepared.amounts,
        validation=after,
        before_training=before,
        notes=prepared.notes,
        cost=prepared.cost + before.cost + trained + (after.cost if after is not before else Cost()) + finished.cost,
        finished=finished,
    )


def prepare(recipe: Recipe, bench: Bench, seed: int) -> Prepared:
    """Bring the model down to the recipe's target, and run the recovery that needs no training.

    Blocks go first, then channels by the recipe's schedule, then kernels and ranks, then single weights.

    Raises UnreachableTarget when the recipe cannot meet its target, BadRecipe when it suits no group of the model.
    """
    recipe.check_target()
    began = time.perf_counter()
    state, evidence = start(recipe, bench, seed)
    shorter = _shortened(recipe, bench, seed, state, evidence)
    recipe = shorter.recipe
    cut = _narrowed(recipe, bench, seed, shorter.state, shorter.evidence)
    state, cost = cut.state, shorter.cost + cut.cost
    implants, remark = _implanted(recipe, bench, state, cut.implanted)
    thin = _factorised(recipe, bench, seed, state, cut.amounts.ranks)
    cost += thin.cost
    sparse, spent = sparsified(state.model, recipe, bench, seed)
    cost += spent + reset(state.model, recipe, bench, seed)
    bench.laid_out(state.model)
    cost += settle(state.model, recipe, bench, seed)
    # a recovery that gives weights new values knows nothing of masks
    zero(state.model, sparse.masks)
    if recipe.replacement is not None and recipe.replacement.whole:
        implants = exchange(state.model, recipe.replacement)
        remark = (f"{recipe.replacement.name}: {len(implants)} layers exchanged",)
    selection = bench.base.structure.selection(state.kept, state.skipped)
    return Prepared(
        compressed=Compressed(
            model=state.model, selection=selection, factors=thin.factors, implants=implants, masks=sparse.masks
        ),
        kept=state.kept,
        amounts=dataclasses.replace(cut.amounts, skipped=state.skipped),
        notes=(*shorter.notes, *cut.notes, *remark, *thin.notes, *sparse.notes, *_predicted(cut.amounts, bench)),
        cost=dataclasses.replace(cost, seconds=time.perf_counter() - began),
    )


@dataclass(frozen=True, kw_only=True)
class _Shortened:
    """The model without the blocks that a recipe skips, and what the recipe asks of the rest."""

    recipe: Recipe
    state: State
    evidence: ModelEvidence
    notes: tuple[str, ...] = ()
    cost: Cost = field(default_factory=Cost)


def _shortened(recipe: Recipe, bench: Bench, seed: int, state: State, evidence: ModelEvidence) -> _Shortened:
    if recipe.depth is None:
        return _Shortened(recipe=recipe, state=state, evidence=evidence)
    found = shorten(recipe, recipe.depth, evidence, budget_of(bench, recipe.target))
    state, cost = state.without(found.blocks), Cost()
    bench.laid_out(state.model)
    if found.blocks and recipe.criterion is not None:
        # channels are scored on the model as it is now, its statistics settled
        cost = settle(state.model, found.recipe, bench, derive_seed(seed, "depth"))
        evidence = ModelEvidence(state.model, state.structure, bench.source, seed=seed)
    return _Shortened(recipe=found.recipe, state=state, evidence=evidence, notes=(found.note,), cost=cost)


@dataclass(frozen=True, kw_only=True)
class _Narrowed:
    """The model behind the last cut of a schedule. amounts: of that cut. implanted: its units to get a cheaper form."""

    state: State
    amounts: Amounts
    implanted: Mapping[str, list[int]]
    notes: tuple[str, ...]
    cost: Cost


def _narrowed(recipe: Recipe, bench: Bench, seed: int, state: State, evidence: ModelEvidence) -> _Narrowed:
    """Cut channels step by step; a regulariser trains before each cut, and scores are those of what it made."""
    cost, steps, notes = Cost(), recipe.schedule.steps(), dict[str, str]()
    chooser, told = Chooser(recipe, bench, seed, notes), tuple[str, ...]()
    for i, step in enumerate(steps):
        chosen: Chosen | None = None
        if recipe.regulariser is not None:
            own = derive_seed(seed, "regularise", i)
            before = steps[i - 1].progress if i else 0.0
            shaped = regularised(recipe, bench, state, chooser, step, own, before=before)
            state, chosen, cost, told = shaped.state, shaped.chosen, cost + shaped.cost, (*told, *shaped.notes)
            evidence = ModelEvidence(state.model, state.structure, bench.source, seed=derive_seed(seed, "shaped", i))
        amounts, keep, implanted = chosen or chooser.of(state, evidence, step)
        chooser.strength += amounts.strength
        structure = state.structure
        state = state.cut(keep)
        bench.laid_out(state.model)
        cost += correct(state.model, recipe, bench, seed, structure, evidence, keep)
        if i + 1 < len(steps):
            cost += settle(state.model, recipe, bench, seed)
            epochs = step.epochs + step.samples / len(bench.data.train)
            cost += train_on(state.model, recipe, bench, derive_seed(seed, "step", i), epochs)
            evidence = ModelEvidence(state.model, state.structure, bench.source, seed=derive_seed(seed, "score", i))
    whole = tuple(f"{group} stays whole: {reason}" for group, reason in notes.items())
    return _Narrowed(state=state, amounts=amounts, implanted=implanted, notes=(*whole, *told), cost=cost + chooser.cost)


def _predicted(amounts: Amounts, bench: Bench) -> tuple[str, ...]:
    if amounts.latency_fraction is None:
        return ()
    error = bench.layer_times.error
    return (f"latency: predicted to be {amounts.latency_fraction:.3f} of the base model's (mean error {error:.0%})",)


def _implanted(
    recipe: Recipe, bench: Bench, state: State, units: Mapping[str, list[int]]
) -> tuple[tuple[Implant, ...], tuple[str, ...]]:
    """Give units their cheaper form, in place. Return what was exchanged, and a note about it."""
    if recipe.replacement is None or recipe.replacement.whole:
        return (), ()
    found = implant(state.model, state.structure, recipe.replacement, units)
    bench.laid_out(state.model)
    rows = sum(len(item.rows) for item in found)
    return found, (f"{recipe.replacement.name}: {rows} rows of {len(found)} layers in a cheaper form",)


@dataclass(frozen=True, kw_only=True)
class _Factorised:
    """The layers that were replaced by thinner ones, in place."""

    factors: tuple[Factor, ...] = ()
    notes: tuple[str, ...] = ()
    cost: Cost = field(default_factory=Cost)


def _factorised(recipe: Recipe, bench: Bench, seed: int, state: State, ranks: Mapping[str, int]) -> _Factorised:
    method = recipe.low_rank
    if method is None or not ranks:
        return _Factorised()
    trained = Trainer(recipe, bench, seed, "lowrank", method.name)
    method.shape(state.model, ranks, LowRankContext(data=bench.data, device=bench.device, train=trained))
    evidence, notes, cost = None, list[str](), trained.cost
    if method.fits_outputs:
        # what the layers read now: moments of the base model are of other channels
        evidence = ModelEvidence(state.model, state.structure, bench.source, seed=derive_seed(seed, "factorise"))
        blind = [layer for layer in ranks if evidence.input_moments(layer) is None]
        notes = [f"{layer} is fitted to its weights: what it reads is not gathered" for layer in blind]
        cost += Cost(forward_samples=bench.source.samples)
    factors = factorise(state.model, method, ranks, evidence)
    bench.laid_out(state.model)
    return _Factorised(factors=factors, notes=tuple(notes), cost=cost)
