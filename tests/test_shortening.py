"""How many blocks a recipe skips, and which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from autoprune.depth import DepthCriterion
from autoprune.errors import BadRecipe, UnreachableTarget
from autoprune.evidence import ModelEvidence
from autoprune.graph import Block
from autoprune.recipe import Recipe
from autoprune.repair import Budget
from autoprune.shortening import Shortening, shorten
from autoprune.trial import Bench

ORDER = ("layer3.2", "layer1.1", "layer2.2", "layer3.1", "layer1.0", "layer2.1", "layer1.2")


@dataclass(frozen=True, kw_only=True)
class Listed(DepthCriterion):
    """Scores by the place in ORDER; after the first block is gone, in the opposite order."""

    def score(self, blocks: Sequence[Block], evidence: ModelEvidence) -> Tensor:
        sign = -1.0 if evidence.structure.skipped else 1.0
        return torch.tensor([sign * ORDER.index(block.name) for block in blocks], dtype=torch.float64)

    def may_go(self, scores: Tensor) -> Tensor:
        return scores != ORDER.index("layer2.2")


def chosen(bench: Bench, target: float, *, alone: bool = False, **values: Any) -> Shortening:
    recipe = Recipe.parse({"target": {"flops_fraction": target}, "depth": "random"})
    recipe = recipe.model_copy(update={"criterion": None if alone else recipe.criterion})
    budget = Budget(flops=bench.base.flops, params=bench.base.params, target=recipe.target)
    return shorten(recipe, Listed(**values), bench.evidence, budget)


def fraction(bench: Bench, blocks: Sequence[str]) -> float:
    return bench.base.structure.without_blocks(blocks).flops() / bench.base.flops


def test_blocks_take_at_most_their_share(deep_bench: Bench) -> None:
    # every block has about 11.6 % of the FLOPs: half of the cut of 60 % has room for two
    found = chosen(deep_bench, 0.4)
    assert found.blocks == ("layer3.2", "layer1.1")
    assert fraction(deep_bench, found.blocks) >= 0.7 > fraction(deep_bench, [*found.blocks, "layer3.1"])
    assert chosen(deep_bench, 0.4, share=1.0).blocks == ("layer3.2", "layer1.1", "layer3.1", "layer2.1", "layer1.2")
    assert chosen(deep_bench, 0.4, share=0.0).blocks == ()
    assert "skips 2 of the 6 blocks that may be skipped: layer3.2, layer1.1, which leaves 0.7" in found.note


def test_alone_the_fewest_blocks_that_meet_the_target(deep_bench: Bench) -> None:
    found = chosen(deep_bench, 0.7, alone=True, share=0.1)
    assert found.blocks == ("layer3.2", "layer1.1", "layer3.1")
    assert fraction(deep_bench, found.blocks) <= 0.7 < fraction(deep_bench, found.blocks[:2])
    assert found.recipe.target.flops_fraction == 0.7


def test_first_units_and_thresholds_protect(deep_bench: Bench) -> None:
    found = chosen(deep_bench, 0.4, allow_first=True, count=6)
    assert found.blocks == ("layer3.2", "layer1.1", "layer3.1", "layer1.0", "layer2.1", "layer1.2")
    assert "layer1.0" not in chosen(deep_bench, 0.4, share=1.0).blocks
    # with every threshold met each stage still has its first unit, and the network runs
    most = chosen(deep_bench, 0.01, alone=True, unreachable="nearest")
    small = deep_bench.base.structure.skip_blocks(deep_bench.model, most.blocks)
    assert len(most.blocks) == 5
    assert all(len(list(stage[0].parameters())) for stage in (small.layer1, small.layer2, small.layer3))
    assert small(deep_bench.data.example_inputs).shape[1] == 10


def test_a_count_is_exact_and_no_more_than_there_are(deep_bench: Bench) -> None:
    assert len(chosen(deep_bench, 0.9, count=3).blocks) == 3
    alone = chosen(deep_bench, 0.2, alone=True, count=3)
    assert len(alone.blocks) == 3
    assert "is not met: that many were asked for" in alone.note
    with pytest.raises(BadRecipe, match=r"Listed.count is 7, but only 6 blocks .* \(allow_first frees"):
        chosen(deep_bench, 0.5, count=7)


def test_iterative_scores_the_shortened_model(deep_bench: Bench) -> None:
    found = chosen(deep_bench, 0.4, share=1.0, iterative=True)
    assert found.blocks[:3] == ("layer3.2", "layer1.2", "layer2.1")


def test_out_of_reach_alone(deep_bench: Bench) -> None:
    with pytest.raises(
        UnreachableTarget, match=r"by depth alone: skipping 5 of the 6 .* reachable range is 0\.41\d to 1"
    ):
        chosen(deep_bench, 0.2, alone=True)
    found = chosen(deep_bench, 0.2, alone=True, unreachable="nearest")
    assert "The target, flops_fraction 0.2, is not met: it is the nearest block count" in found.note
    reached = fraction(deep_bench, found.blocks)
    assert found.recipe.target.flops_fraction == pytest.approx(reached, rel=1e-8)


def test_values_for_groups_that_are_gone_are_dropped(deep_bench: Bench) -> None:
    keep = {"layer1.1.conv1": 0.3, "layer3.2.*": 0.4, "layer*.0.conv1": 0.5, "conv1": 0.6}
    recipe = Recipe.parse(
        {
            "target": {"flops_fraction": 0.4},
            "allocation": {"name": "per_group", "keep_fraction": keep},
            "low_rank": {"name": "svd", "rank_fraction": {"layer1.1.conv2": 0.5, "layer1.2.conv2": 0.7}},
        }
    )
    budget = Budget(flops=deep_bench.base.flops, params=deep_bench.base.params, target=recipe.target)
    left = shorten(recipe, Listed(), deep_bench.evidence, budget).recipe
    assert left.allocation.config()["keep_fraction"] == {"layer*.0.conv1": 0.5, "conv1": 0.6}
    assert left.low_rank is not None
    assert left.low_rank.config()["rank_fraction"] == {"layer1.2.conv2": 0.7}


def test_a_model_without_blocks_says_why(digits_bench: Bench) -> None:
    with pytest.raises(
        BadRecipe, match="may skip no block of this model: layer1 begin stages; allow_first: true frees"
    ):
        chosen(digits_bench, 0.5)


def test_wrong_scores_are_refused(deep_bench: Bench) -> None:
    class Short(Listed):
        def score(self, blocks: Sequence[Block], evidence: ModelEvidence) -> Tensor:
            return torch.zeros(2)

    recipe = Recipe.parse({"depth": "random"})
    budget = Budget(flops=deep_bench.base.flops, params=deep_bench.base.params, target=recipe.target)
    with pytest.raises(BadRecipe, match=r"gave scores of shape \(2,\) for 6 blocks"):
        shorten(recipe, Short(), deep_bench.evidence, budget)
