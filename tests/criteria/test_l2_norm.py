from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from autoprune.criteria.l2_norm import L2Norm
from autoprune.evidence import ModelEvidence
from autoprune.graph import Structure

Look = Callable[[nn.Module, torch.Tensor], tuple[Structure, ModelEvidence]]


def test_by_hand_euclidean_row_norms(look: Look) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, -4.0, 0.0], [2.0, 3.0, -6.0]]))
    structure, evidence = look(model, torch.randn(16, 3))
    assert L2Norm().score(structure.group("0"), evidence).tolist() == [5, 7]
