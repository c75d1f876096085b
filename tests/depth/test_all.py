"""What every depth criterion owes, found by walking the room."""

from __future__ import annotations

import copy
from typing import cast

import pytest
import torch

from autoprune import rooms
from autoprune.depth import DepthCriterion
from autoprune.trial import Bench

NAMES = rooms.names("depth")


def criterion(name: str) -> DepthCriterion:
    return cast(DepthCriterion, rooms.build("depth", name))


@pytest.mark.parametrize("name", NAMES)
def test_one_finite_score_for_every_block(name: str, deep_bench: Bench) -> None:
    blocks = deep_bench.base.structure.blocks
    scores = criterion(name).score(blocks, deep_bench.evidence.with_seed(0))
    assert scores.shape == (7,)
    assert scores.dtype == torch.float64
    assert bool(torch.isfinite(scores).all())
    assert len(set(scores.tolist())) > 1
    assert criterion(name).score([], deep_bench.evidence).shape == (0,)


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_scores_for_any_order_of_blocks(name: str, deep_bench: Bench) -> None:
    blocks = deep_bench.base.structure.blocks
    first = criterion(name).score(blocks, deep_bench.evidence.with_seed(3))
    second = criterion(name).score(blocks[::-1], deep_bench.evidence.with_seed(3))
    assert torch.equal(first, second.flip(0))


@pytest.mark.parametrize("name", NAMES)
def test_model_modes_and_random_state_stay(name: str, deep_bench: Bench) -> None:
    model = deep_bench.model
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    state = torch.get_rng_state()
    fresh = deep_bench.evidence.without_blocks(())
    criterion(name).score(deep_bench.base.structure.blocks, fresh)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_random_depends_on_the_seed(deep_bench: Bench) -> None:
    blocks = deep_bench.base.structure.blocks
    one, other = (criterion("random").score(blocks, deep_bench.evidence.with_seed(seed)) for seed in (1, 2))
    assert not torch.equal(one, other)
    assert bool(((one >= 0) & (one < 1)).all())
