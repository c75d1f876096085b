from __future__ import annotations

import pytest
import torch
from torch import nn

from autoprune.allocation import AllocationContext
from autoprune.allocation.affine_global import AffineGlobal
from autoprune.errors import BadRecipe
from autoprune.graph import trace


@pytest.fixture
def context() -> AllocationContext:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 3))
    scores = {"0": torch.tensor([0.9, 0.1, 0.8, 0.2]), "2": torch.tensor([0.15, 0.7])}
    return AllocationContext.of(scores, trace(model, torch.randn(2, 3)))


def test_without_correction_it_is_the_global_ranking(context: AllocationContext) -> None:
    assert AffineGlobal().path(context)(1.0).tolist() == [2, 1]


def test_a_scaled_group_goes_later(context: AllocationContext) -> None:
    # second group: 1.5 and 7.0, so the three that go are 0.1, 0.2 and 0.8 of the first
    assert AffineGlobal(scale={"2": 10.0}).path(context)(1.0).tolist() == [1, 2]


def test_a_group_shifted_down_goes_first(context: AllocationContext) -> None:
    # second group: -0.85 and -0.3, then 0.1 of the first
    assert AffineGlobal(shift={"2": -1.0}).path(context)(1.0).tolist() == [3, 0]


def test_a_name_that_matches_no_group_is_an_error(context: AllocationContext) -> None:
    with pytest.raises(BadRecipe, match=r"affine_global.scale: no group matches 'conv9'"):
        AffineGlobal(scale={"conv9": 2.0}).path(context)
