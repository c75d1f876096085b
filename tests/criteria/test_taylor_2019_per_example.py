from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoprune.criteria.taylor_2019_per_example import Taylor2019PerExample
from autoprune.data import Data, TensorSplit
from autoprune.evidence import ModelEvidence, Source
from autoprune.graph import trace
from autoprune.tasks import build_task


class _Gated(nn.Module):
    """conv-BN-ReLU, pool, linear; a gate after the norm and before its ReLU, as in the paper."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.linear = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Linear(6, 4)

    def gated(self, x: Tensor, gate: Tensor) -> Tensor:
        return self.linear(F.relu(self.bn(self.conv(x)) * gate).mean(dim=(2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.relu(self.bn(self.conv(x))).mean(dim=(2, 3)))


def score(model: nn.Module, images: Tensor, labels: Tensor, batches: int, size: int) -> Tensor:
    split = TensorSplit(images, labels)
    data = Data(split, split, None, "synthetic", 4, "synthetic")
    structure = trace(model.eval(), data.example_inputs)
    source = Source(data=data, task=build_task(), batches=batches, batch_size=size, device=torch.device("cpu"))
    evidence = ModelEvidence(model, structure, source, seed=0)
    return Taylor2019PerExample().score(structure.group("conv"), evidence)


def test_equals_the_squared_gradient_of_a_gate_for_every_example() -> None:
    model = _Gated().double()
    nn.init.uniform_(model.bn.weight, -1, 1)
    nn.init.uniform_(model.bn.bias, -1, 1)
    images, labels = torch.randn(24, 3, 6, 6, dtype=torch.float64), torch.arange(24) % 4
    found = score(model, images, labels, batches=3, size=8)
    gate = torch.ones(24, 6, 1, 1, dtype=torch.float64, requires_grad=True)
    F.cross_entropy(model.eval().gated(images, gate), labels, reduction="sum").backward()
    assert torch.allclose(found, gate.grad.square().mean(dim=0).flatten(), rtol=1e-9, atol=0)  # type: ignore[union-attr]


def test_the_batch_size_does_not_matter() -> None:
    model, images, labels = _Gated().double(), torch.randn(24, 3, 6, 6, dtype=torch.float64), torch.arange(24) % 4
    one = score(model, images, labels, batches=1, size=24)
    assert torch.allclose(one, score(model, images, labels, batches=24, size=1), rtol=1e-9)
    assert len(one.unique()) == 6
