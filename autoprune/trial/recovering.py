"""Recovery: what corrects a model after a cut, and what trains it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence

from torch import nn

from autoprune.compressed import Compressed
from autoprune.evidence import ModelEvidence
from autoprune.graph import Structure
from autoprune.masks import Hold, zero
from autoprune.recipe import Recipe
from autoprune.recovery import Cut, Recovery, RecoveryContext, RecoveryCost
from autoprune.seeds import derive_seed
from autoprune.training import StepHook
from autoprune.trial.bench import Bench, Cost


def train_compressed(
    compressed: Compressed, recipe: Recipe, bench: Bench, seed: int, epochs: float
) -> tuple[Compressed, Cost]:
    """Train a compressed model in place as `train_on` does, its masks held or moved; return it with its masks now."""
    if recipe.sparsity is None or not compressed.masks:
        return compressed, train_on(compressed.model, recipe, bench, seed, epochs)
    hook = recipe.sparsity.hold(compressed.masks, derive_seed(seed, "masks"))
    cost = train_on(compressed.model, recipe, bench, seed, epochs, hook)
    return dataclasses.replace(compressed, masks=hook.masks), cost


def restart(compressed: Compressed, recipe: Recipe, bench: Bench, seed: int) -> Cost:
    """Train a compressed model, in place, from new weights for the recipe's epochs; its masks are held where they are.

    The recipe's recovery has to reset the weights and to train.
    """
    cost = reset(compressed.model, recipe, bench, seed)
    zero(compressed.model, compressed.masks)
    hook = Hold(compressed.masks) if compressed.masks else None
    return cost + train_on(compressed.model, recipe, bench, derive_seed(seed, "train"), recipe.epochs, hook)


def train_on(
    model: nn.Module, recipe: Recipe, bench: Bench, seed: int, epochs: float, hook: StepHook | None = None
) -> Cost:
    """Train a compressed model in place for `epochs` by the recipe's training recovery, if it has one."""
    method = next((r for r in recipe.recovery if r.trains), None)
    if method is None or epochs <= 0:
        return Cost()
    began = time.perf_counter()
    spent = method.recover(model, dataclasses.replace(bench.recovery_context(seed), hook=hook), epochs)
    return _cost_of(spent, time.perf_counter() - began, forward=False)


def correct(
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


def settle(model: nn.Module, recipe: Recipe, bench: Bench, seed: int) -> Cost:
    """Run the other recovery methods that need no training."""
    methods = [r for r in recipe.recovery if not (r.trains or r.follows_cut or r.resets)]
    return _run(methods, model, bench.recovery_context(derive_seed(seed, "settle")))


def reset(model: nn.Module, recipe: Recipe, bench: Bench, seed: int) -> Cost:
    """Run the recovery methods that leave nothing of the weights."""
    return _run([r for r in recipe.recovery if r.resets], model, bench.recovery_context(seed))


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
