from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoprune.criteria.taylor_2019 import Taylor2019
from autoprune.criteria.taylor_2019_second_order import Taylor2019SecondOrder
from autoprune.data import Data, TensorSplit
from autoprune.evidence import ModelEvidence, Source
from autoprune.graph import trace
from autoprune.tasks import Task, build_task

SQUARED = Task(loss=lambda output, targets: F.mse_loss(output, targets), metric=lambda o, _: (0.0, len(o)))


def evidence_of(
    model: nn.Module, inputs: Tensor, targets: Tensor, task: Task, batches: int = 1, size: int = 16
) -> ModelEvidence:
    split = TensorSplit(inputs, targets)
    data = Data(split, split, None, "synthetic", None, "synthetic")
    source = Source(data=data, task=task, batches=batches, batch_size=size, device=torch.device("cpu"))
    return ModelEvidence(model, trace(model.eval(), inputs[:2]), source, seed=0)


def test_exact_under_a_quadratic_loss() -> None:
    """y = (x * g) W^T with a squared loss: the score is the squared change of the loss; neither FO nor the row is."""
    model = nn.Sequential(nn.Linear(5, 5, bias=False), nn.Identity(), nn.Linear(5, 3, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(5))
    inputs = torch.randn(16, 5, dtype=torch.float64)
    targets = torch.randn(16, 3, dtype=torch.float64)
    evidence = evidence_of(model, inputs, targets, SQUARED)
    group = evidence.structure.groups[0]

    def loss(gates: Tensor) -> Tensor:
        return F.mse_loss((inputs * gates) @ model[2].weight.T, targets)

    ones = torch.ones(5, dtype=torch.float64)
    change = torch.stack([(loss(ones) - loss(1 - row)).detach() for row in torch.eye(5, dtype=torch.float64)])
    found = Taylor2019SecondOrder().score(group, evidence)
    assert torch.allclose(found, change.square(), rtol=1e-9, atol=0)
    assert not torch.allclose(Taylor2019().score(group, evidence), change.square(), rtol=0.1)
    gradient = torch.autograd.functional.jacobian(loss, ones)
    whole_row = torch.autograd.functional.hessian(loss, ones).sum(dim=1)  # type: ignore[no-untyped-call]
    assert not torch.allclose((gradient - whole_row / 2).square(), change.square(), rtol=0.1)  # type: ignore[operator]


def test_derivatives_are_those_of_the_papers_gates_with_batch_statistics() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.last = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3)

        def gated(self, x: Tensor, gates: Tensor) -> Tensor:
            return self.last(torch.tanh(self.bn(self.conv(x))) * gates.view(1, -1, 1, 1)).mean(dim=(2, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.bn(self.conv(x)))).mean(dim=(2, 3))

    model = Net().double()
    images, labels = torch.randn(16, 2, 6, 6, dtype=torch.float64), torch.arange(16) % 3
    evidence = evidence_of(model, images, labels, build_task(), batches=2, size=8)
    expected = []
    for batch, targets in evidence._source.draw():
        model.train()

        def loss(gates: Tensor, batch: Tensor = batch, targets: Tensor = targets) -> Tensor:
            return F.cross_entropy(model.gated(batch, gates), targets)

        ones = torch.ones(4, dtype=torch.float64)
        gradient = torch.autograd.functional.jacobian(loss, ones)
        hessian = torch.autograd.functional.hessian(loss, ones)  # type: ignore[no-untyped-call]
        expected.append((gradient - hessian.diagonal() / 2).square())  # type: ignore[union-attr,operator]
    found = Taylor2019SecondOrder().score(evidence.structure.group("conv"), evidence)
    assert torch.allclose(found, torch.stack(expected).mean(dim=0), rtol=1e-8)


def test_first_order_is_a_part_of_it() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double()
    images, labels = torch.randn(16, 2, 6, 6, dtype=torch.float64), torch.arange(16) % 3
    evidence = evidence_of(model, images, labels, build_task(), batches=2, size=8)
    group = evidence.structure.group("0")
    assert torch.allclose(evidence.gate_curvature(group)[0], evidence.gate_gradients(group), rtol=1e-9)
