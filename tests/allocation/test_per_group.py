from __future__ import annotations

import pytest
import torch
from torch import nn

from autoprune.allocation import AllocationContext
from autoprune.allocation.per_group import PerGroup
from autoprune.errors import BadRecipe
from autoprune.graph import Structure, trace


@pytest.fixture
def structure() -> Structure:
    model = nn.Sequential(nn.Linear(3, 10), nn.ReLU(), nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 3))
    return trace(model, torch.randn(2, 3))


def test_each_group_keeps_its_own_power(structure: Structure) -> None:
    scores = {"0": torch.ones(10), "2": torch.ones(20)}
    path = PerGroup(keep_fraction={"0": 0.9, "2": 0.3}).path(AllocationContext.of(scores, structure))
    assert path(1.0).tolist() == pytest.approx([9.0, 6.0])
    assert path(2.0).tolist() == pytest.approx([8.1, 1.8])


def test_a_group_that_is_not_named_stays_whole(structure: Structure) -> None:
    path = PerGroup(keep_fraction={"2": 0.5}).path(
        AllocationContext.of({"0": torch.ones(10), "2": torch.ones(20)}, structure)
    )
    assert path(1.0).tolist() == [10.0, 10.0]


def test_a_name_that_matches_no_group_is_an_error(structure: Structure) -> None:
    with pytest.raises(BadRecipe, match=r"per_group.keep_fraction: no group matches 'conv9'; there are 0, 2"):
        PerGroup(keep_fraction={"conv9": 0.5}).path(AllocationContext.of({"0": torch.ones(10)}, structure))
