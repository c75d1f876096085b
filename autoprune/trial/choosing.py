"""Which units a cut keeps: score, allocate, repair to the target, take the highest."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from autoprune.allocation import AllocationContext
from autoprune.allocation import Cost as CostOfCounts
from autoprune.errors import BadRecipe, NotApplicable
from autoprune.evidence import Evidence, ModelEvidence
from autoprune.graph import Structure
from autoprune.lowrank import Energies
from autoprune.normalisation import normalise
from autoprune.probe import Probe
from autoprune.recipe import Recipe, Target
from autoprune.repair import Amounts, Budget, repair
from autoprune.schedules import Step
from autoprune.trial.bench import Bench, Cost
from autoprune.trial.state import State


class Chosen(NamedTuple):
    """What a cut keeps: amounts, kept units by group, and which of those, by place, get a cheaper form behind it."""

    amounts: Amounts
    keep: dict[str, list[int]]
    implanted: dict[str, list[int]]


class Chooser:
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

    def of(self, state: State, evidence: ModelEvidence, step: Step) -> Chosen:
        """Choose for the cut that comes now."""
        scores = smoothed(scores_of(self._recipe, state.structure, evidence, self._notes), self._earlier, step.momentum)
        self._probe = self._probe or self._probe_of(state, scores, evidence)
        chosen = self._repaired(state, scores, evidence, self._probe, step)
        self._earlier = {name: score[chosen.keep[name]] for name, score in scores.items()}
        return chosen

    def ahead(self, state: State, step: Step, seed: int, spent: float = 0.0) -> Chosen:
        """Choose for a model that is still to be trained; measurements of it serve this choice only.

        spent: strength of choices before this one that the state has come to since its last cut.
        """
        evidence = ModelEvidence(state.model, state.structure, self._bench.source, seed=seed)
        scores = scores_of(self._recipe, state.structure, evidence, self._notes)
        return self._repaired(state, scores, evidence, self._probe_of(state, scores, evidence), step, spent)

    def _probe_of(self, state: State, scores: Mapping[str, Tensor], evidence: ModelEvidence) -> Probe | None:
        probe = _probe(self._recipe, self._bench, state, scores, evidence, self._seed)
        self._probes += [probe] if probe is not None else []
        return probe

    def _repaired(
        self,
        state: State,
        scores: Mapping[str, Tensor],
        evidence: ModelEvidence,
        probe: Probe | None,
        step: Step,
        spent: float = 0.0,
    ) -> Chosen:
        context = _allocation_context(
            self._recipe, step.progress, self._bench, state.structure, scores, evidence, probe
        )
        amounts = _repair(self._recipe, self._bench, context, step.progress, self.strength + spent)
        keep = highest(scores, amounts.counts)
        whole = {name: amounts.counts[name] - count for name, count in amounts.implanted.items()}
        full = highest(scores, whole)
        implanted = {name: [i for i, unit in enumerate(keep[name]) if unit not in set(full[name])] for name in full}
        return Chosen(amounts, keep, implanted)


def scores_of(
    recipe: Recipe, structure: Structure, evidence: ModelEvidence, notes: dict[str, str]
) -> dict[str, Tensor]:
    """Return normalised scores (C,) by group. What cannot be scored is left out, with the reason in `notes`.

    Raises BadRecipe when the criterion scores nothing.
    """
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
    state: State,
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
        choose=functools.partial(highest, scores),
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
    cost, budget = _limited(target, bench, structure)
    return AllocationContext(
        scores=scores,
        structure=structure,
        full_sizes={g.name: g.size for g in bench.base.structure.groups},
        cost=cost,
        budget=budget,
        min_keep_fraction=recipe.min_keep_fraction,
        evidence=evidence,
        measure=probe,
    )


def _limited(target: Target, bench: Bench, structure: Structure) -> tuple[CostOfCounts, float]:
    """Return the cost of counts (G,) that allocations look at, and what it may be: of several limits the first."""
    if target.flops_fraction is not None:
        return structure.total_flops, bench.base.flops * target.flops_fraction
    if target.params_fraction is not None:
        return structure.total_params, bench.base.params * target.params_fraction
    times, allowed = bench.layer_times, target.latency_fraction or 1.0
    return functools.partial(times.predicted_ms, structure), times.whole_ms * allowed


def _repair(
    recipe: Recipe, bench: Bench, context: AllocationContext, progress: float, strength_before: float
) -> Amounts:
    return repair(
        context.structure,
        budget_of(bench, recipe.target.at(progress)),
        path=recipe.allocation.path(context) if context.scores else None,
        low_rank=recipe.low_rank,
        energies=_energies(recipe, context),
        # what stays for later cuts is whole
        replacement=recipe.replacement if progress == 1 else None,
        min_keep_fraction=recipe.min_keep_fraction,
        full_sizes=context.full_sizes,
        strength_before=strength_before,
    )


def _energies(recipe: Recipe, context: AllocationContext) -> Energies:
    if recipe.low_rank is None or context.evidence is None:
        return {}
    return recipe.low_rank.energies(context.structure.layers, context.evidence)


def budget_of(bench: Bench, target: Target) -> Budget:
    """Return the base model's cost with the target; layers are timed where it has a latency."""
    latency = None if target.latency_fraction is None else bench.layer_times.fraction
    return Budget(flops=bench.base.flops, params=bench.base.params, target=target, latency=latency)


def highest(scores: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, list[int]]:
    """Return the units with the highest scores of every group counted; of equal ones those with the lower index."""
    keep = {}
    for name, score in scores.items():
        if name in counts:
            order = torch.sort(score, descending=True, stable=True).indices
            keep[name] = sorted(order[: counts[name]].tolist())
    return keep
