"""The model on its way from the base model to its target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from autoprune.evidence import ModelEvidence
from autoprune.graph import Structure
from autoprune.recipe import Recipe
from autoprune.seeds import derive_seed
from autoprune.trial.bench import Bench


@dataclass(frozen=True)
class State:
    """The model between two cuts; `kept` are the base model's units that are still there, `skipped` its blocks that
    are not."""

    model: nn.Module
    structure: Structure
    kept: Mapping[str, list[int]]
    skipped: tuple[str, ...] = ()

    def cut(self, keep: Mapping[str, list[int]]) -> State:
        kept = {name: [units[i] for i in keep[name]] if name in keep else units for name, units in self.kept.items()}
        return State(self.structure.cut(self.model, keep), self.structure.restrict(keep), kept, self.skipped)

    def without(self, blocks: tuple[str, ...]) -> State:
        less = self.structure.without_blocks(blocks)
        kept = {name: units for name, units in self.kept.items() if name in less.names}
        return State(self.structure.skip_blocks(self.model, blocks), less, kept, (*self.skipped, *blocks))


def start(recipe: Recipe, bench: Bench, seed: int) -> tuple[State, ModelEvidence]:
    """Return the model that everything begins with, uncut, and evidence about it."""
    structure = bench.base.structure
    units = {g.name: list(range(g.size)) for g in structure.groups}
    if recipe.start == "base":
        return State(bench.model, structure, units), bench.evidence.with_seed(seed)
    model = bench.fresh(derive_seed(seed, "start"))
    return State(model, structure, units), ModelEvidence(model, structure, bench.source, seed=seed)
