from __future__ import annotations

import pytest
import torch
from torch import nn

from autoprune.allocation import AllocationContext
from autoprune.allocation.uniform import Uniform
from autoprune.graph import trace


def test_every_group_keeps_the_same_share() -> None:
    model = nn.Sequential(nn.Linear(3, 10), nn.ReLU(), nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 3))
    structure = trace(model, torch.randn(2, 3))
    path = Uniform().path(AllocationContext.of({"0": torch.rand(10), "2": torch.rand(20)}, structure))
    assert path(1.0).tolist() == [5.0, 10.0]
    assert path(0.32192809488736235).tolist() == pytest.approx([8.0, 16.0])  # 0.5 ** s = 0.8
