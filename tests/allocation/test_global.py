from __future__ import annotations

import importlib

import torch
from torch import nn

from autoprune.allocation import AllocationContext
from autoprune.graph import trace

# `global` is a keyword, so the module has no plain import
Global = importlib.import_module("autoprune.allocation.global").Global


def test_the_lowest_of_the_whole_network_go_first() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 3))
    structure = trace(model, torch.randn(2, 3))
    scores = {"0": torch.tensor([0.9, 0.1, 0.8, 0.2]), "2": torch.tensor([0.15, 0.7])}
    path = Global().path(AllocationContext.of(scores, structure))
    # one third of six units is two: 0.1 of the first and 0.15 of the second; half is three: 0.2 as well
    one_third, half = 0.5849625007211562, 1.0  # 1 - 0.5 ** s
    assert path(one_third + 1e-9).tolist() == [3, 1]
    assert path(half).tolist() == [2, 1]


def test_ties_go_by_the_order_of_the_groups() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 3))
    structure = trace(model, torch.randn(2, 3))
    path = Global().path(AllocationContext.of({"0": torch.ones(2), "2": torch.ones(2)}, structure))
    assert path(1.0).tolist() == [0, 2]
