"""Depth: which residual blocks a recipe skips, before any channel goes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from autoprune.depth import DepthCriterion
from autoprune.errors import BadRecipe, UnreachableTarget
from autoprune.evidence import ModelEvidence
from autoprune.fields import PerItem, hyperparameters
from autoprune.graph import Block, Structure
from autoprune.recipe import Recipe, Target
from autoprune.repair import Budget
from autoprune.rooms import Method

M = TypeVar("M", bound=Method)


@dataclass(frozen=True, kw_only=True)
class Shortening:
    """The blocks to skip, in the order of their scores, the recipe for what is left, and what to tell about it."""

    blocks: tuple[str, ...]
    recipe: Recipe
    note: str


def shorten(recipe: Recipe, depth: DepthCriterion, evidence: ModelEvidence, budget: Budget) -> Shortening:
    """Choose the blocks that a recipe skips.

    evidence: about the whole model. budget: of the recipe's target. Raises BadRecipe when no block may go or more are
    asked for than may, UnreachableTarget when depth alone does not meet the target.
    """
    choice = _Choice(recipe, depth, evidence.structure, budget)
    choice.take(_ranked(depth, choice.allowed, evidence))
    return choice.result()


def _ranked(depth: DepthCriterion, allowed: Sequence[Block], evidence: ModelEvidence) -> Iterator[str]:
    """Yield blocks, lowest score first; of equal ones the earlier. Scored anew after each one if asked."""
    left = list(allowed)
    scores = _scores(depth, left, evidence)
    gone: list[str] = []
    while left:
        going = depth.may_go(scores)
        order = [i for i in torch.sort(scores, stable=True).indices.tolist() if going[i]]
        if not order:
            return
        block = left.pop(order[0])
        scores = torch.cat([scores[: order[0]], scores[order[0] + 1 :]])
        gone.append(block.name)
        yield block.name
        if depth.iterative and left:
            scores = _scores(depth, left, evidence.without_blocks(gone))


def _scores(depth: DepthCriterion, blocks: Sequence[Block], evidence: ModelEvidence) -> Tensor:
    scores = depth.score(blocks, evidence)
    if scores.shape != (len(blocks),) or not bool(torch.isfinite(scores).all()):
        raise BadRecipe(
            f"depth {depth.name!r} gave scores of shape {tuple(scores.shape)} for {len(blocks)} blocks, finite: "
            f"{bool(torch.isfinite(scores).all())}; they must be ({len(blocks)},) and finite"
        )
    return scores


class _Choice:
    """Takes blocks until there are enough."""

    def __init__(self, recipe: Recipe, depth: DepthCriterion, structure: Structure, budget: Budget) -> None:
        self.recipe, self.depth, self.structure, self.budget = recipe, depth, structure, budget
        self.alone = recipe.criterion is None and recipe.low_rank is None
        self.allowed = [block for block in structure.blocks if depth.allow_first or not block.first]
        self.gone: tuple[str, ...] = ()
        if not self.allowed:
            raise BadRecipe(f"depth {depth.name!r} may skip no block of this model: {self._why_none()}")
        if depth.count > len(self.allowed):
            raise BadRecipe(
                f"{type(depth).__name__}.count is {depth.count}, but only {len(self.allowed)} blocks of this model may "
                f"be skipped{'' if depth.allow_first else ' (allow_first frees the first units of stages)'}"
            )

    def take(self, ranked: Iterator[str]) -> None:
        for name in ranked:
            if self._enough() or not self._fits((*self.gone, name)):
                return
            self.gone = (*self.gone, name)

    def _enough(self) -> bool:
        if self.depth.count:
            return len(self.gone) == self.depth.count
        return self.alone and self._excess(self.gone, self.recipe.target) <= 1

    def _fits(self, blocks: tuple[str, ...]) -> bool:
        """Whether channels and ranks still have their part to do after these blocks."""
        if self.alone or self.depth.count:
            return True
        return self._excess(blocks, self.recipe.target.at(self.depth.share)) >= 1

    def _cost(self, blocks: Sequence[str]) -> tuple[float, float]:
        less = self.structure.without_blocks(blocks)
        return less.total_flops(less.sizes), less.total_params(less.sizes)

    def _excess(self, blocks: Sequence[str], target: Target) -> float:
        return dataclasses.replace(self.budget, target=target).excess(*self._cost(blocks))

    def _fractions(self, blocks: Sequence[str]) -> tuple[float, float]:
        flops, params = self._cost(blocks)
        return flops / self.budget.flops, params / self.budget.params

    def result(self) -> Shortening:
        recipe = self.recipe
        missed = self.alone and self._excess(self.gone, recipe.target) > 1
        if missed and self.depth.unreachable == "refuse" and not self.depth.count:
            raise self._refusal()
        flops, params = self._fractions(self.gone)
        if missed:
            recipe = recipe.with_target(
                flops_fraction=_eased(recipe.target.flops_fraction, flops),
                params_fraction=_eased(recipe.target.params_fraction, params),
            )
        less = self.structure.without_blocks(self.gone)
        parts = {
            key: part and _adapted(part, self.structure, less)
            for key, part in (("allocation", recipe.allocation), ("low_rank", recipe.low_rank))
        }
        return Shortening(blocks=self.gone, recipe=recipe.model_copy(update=parts), note=self._told(flops, missed))

    def _told(self, flops: float, missed: bool) -> str:
        many = f"{len(self.gone)} of the {len(self.allowed)} blocks that may be skipped"
        names = f": {', '.join(self.gone)}" if self.gone else ""
        told = f"depth skips {many}{names}, which leaves {flops:.3f} of the FLOPs"
        if missed:
            wanted = ", ".join(f"{key} {value:g}" for key, value in self.recipe.target if value is not None)
            why = "that many were asked for" if self.depth.count else "it is the nearest block count without other cuts"
            return f"{told}. The target, {wanted}, is not met: {why}"
        return told

    def _refusal(self) -> UnreachableTarget:
        flops, params = self._fractions(self.gone)
        wanted = ", ".join(f"{key} {value:g}" for key, value in self.recipe.target if value is not None)
        return UnreachableTarget(
            f"target {wanted} cannot be reached by depth alone: skipping {len(self.gone)} of the {len(self.allowed)} "
            f"blocks that may go reaches flops_fraction {flops:.3f}, params_fraction {params:.3f}; the reachable range "
            f"is {flops:.3f} to 1 of the FLOPs. Raise the target, set a criterion or low_rank for the rest"
            f"{'' if self.depth.allow_first else ', set depth.allow_first'}, or take the nearest block count "
            "(depth.unreachable: nearest)"
        )

    def _why_none(self) -> str:
        if first := [block.name for block in self.structure.blocks]:
            return f"{', '.join(first)} begin stages; allow_first: true frees them"
        reasons = "; ".join(f"{item.name}: {item.reason}" for item in self.structure.fixed_blocks[:3])
        return reasons or "it has no module that adds to its input"


def _eased(fraction: float | None, reached: float) -> float | None:
    # a little more than what was reached, lest rounding says that it is not
    return None if fraction is None else max(fraction, min(1.0, reached * (1 + 1e-9)))


def _adapted(method: M, before: Structure, after: Structure) -> M:
    """The method without values for groups and layers that are gone, which it would not know."""
    names = {
        "group": ([g.name for g in before.groups], [g.name for g in after.groups]),
        "layer": ([layer.name for layer in before.layers], [layer.name for layer in after.layers]),
    }
    changed = {}
    for key, declared in hyperparameters(method).items():
        value = getattr(method, key)
        if isinstance(declared, PerItem) and isinstance(value, Mapping):
            changed[key] = declared.without(value, *names[declared.of])
    return dataclasses.replace(method, **changed) if changed else method  # type: ignore[type-var]
