from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import nn

from autoprune.allocation import AllocationContext
from autoprune.allocation.accuracy_floor import AccuracyFloor, floors, largest_passing
from autoprune.graph import trace
from autoprune.tasks import Evaluation


def test_bisection_finds_the_last_passing_share() -> None:
    assert largest_passing(lambda share: share <= 0.37, 1.0, 6) == 23 / 64
    assert largest_passing(lambda share: False, 1.0, 6) == 0.0


def test_floors_fall_linearly_with_depth() -> None:
    assert floors(0.9, 0.1, 4) == pytest.approx([0.875, 0.85, 0.825, 0.8])


def test_groups_before_are_cut_already() -> None:
    """Accuracy falls by 1 % for every unit of 16 that is gone: the first may lose 2 units, the second then 2 more."""
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    structure = trace(model, torch.randn(2, 4))
    asked: list[dict[str, int]] = []

    def measured(counts: Mapping[str, int], samples: int) -> Evaluation:
        asked.append(dict(counts))
        return Evaluation(0.1, 0.9 - 0.01 * sum(16 - n for n in counts.values()) + 1e-9, samples)

    bare = AllocationContext.of({"0": torch.rand(16), "2": torch.rand(16)}, structure)
    context = replace(bare, measure=measured)
    path = AccuracyFloor(acc_drop=0.04, steps=6, max_removed_fraction=1.0).path(context)
    assert all(counts["0"] == 14 for counts in asked if "2" in counts)
    kept = path(0.25)
    assert kept[0] == pytest.approx(kept[1], rel=0.05)
