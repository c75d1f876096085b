from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoprune.criteria.taylor_2019 import Taylor2019
from autoprune.data import Data, TensorSplit
from autoprune.evidence import ModelEvidence, Source
from autoprune.graph import Structure, trace
from autoprune.tasks import build_task
from autoprune.training import train
from autoprune.training_settings import TrainingSettings

Look = Callable[[nn.Module, torch.Tensor], tuple[Structure, ModelEvidence]]


class _Gated(nn.Module):
    """conv-BN-ReLU twice, pool, linear; gates after each BN and before its ReLU, as in the paper."""

    def __init__(self, first: int = 6, second: int = 8) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, first, 3, padding=1), nn.BatchNorm2d(first)
        self.conv2, self.bn2 = nn.Conv2d(first, second, 3, padding=1), nn.BatchNorm2d(second)
        self.linear = nn.Linear(second, 4)

    def gated(self, x: Tensor, gate1: Tensor, gate2: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)) * gate1.view(1, -1, 1, 1))
        x = F.relu(self.bn2(self.conv2(x)) * gate2.view(1, -1, 1, 1))
        return self.linear(x.mean(dim=(2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.gated(x, torch.ones(self.bn1.num_features).to(x), torch.ones(self.bn2.num_features).to(x))


class _Plain(_Gated):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.linear(F.relu(self.bn2(self.conv2(x))).mean(dim=(2, 3)))


def data_of(images: Tensor, labels: Tensor) -> Data:
    split = TensorSplit(images, labels)
    return Data(split, split, None, "synthetic", 4, "synthetic")


def evidence_of(model: nn.Module, data: Data, batches: int, size: int) -> tuple[Structure, ModelEvidence]:
    structure = trace(model.eval(), data.example_inputs)
    source = Source(data=data, task=build_task(), batches=batches, batch_size=size, device=torch.device("cpu"))
    return structure, ModelEvidence(model, structure, source, seed=0)


def test_equals_the_squared_gradient_of_the_papers_gates() -> None:
    model = _Plain().double()
    with torch.no_grad():
        for bn in (model.bn1, model.bn2):
            bn.weight.uniform_(-1, 1)
            bn.bias.uniform_(-1, 1)
    data = data_of(torch.randn(24, 3, 6, 6, dtype=torch.float64), torch.arange(24) % 4)
    structure, evidence = evidence_of(model, data, batches=3, size=8)

    squares1, squares2 = [], []
    for images, labels in data.train.batches(8, seed=0):
        gates = [torch.ones(n, dtype=torch.float64, requires_grad=True) for n in (6, 8)]
        model.train()
        F.cross_entropy(model.gated(images, *gates), labels).backward()
        squares1.append(gates[0].grad.square())
        squares2.append(gates[1].grad.square())
    for name, squares in (("conv1", squares1), ("conv2", squares2)):
        score = Taylor2019().score(structure.group(name), evidence)
        assert torch.allclose(score, torch.stack(squares).mean(0), rtol=1e-9, atol=0)


def test_one_gate_is_shared_by_all_that_write_a_residual_stream() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.bn0 = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5)
            self.conv, self.bn = nn.Conv2d(5, 5, 3, padding=1), nn.BatchNorm2d(5)
            self.linear = nn.Linear(5, 4)

        def gated(self, x: Tensor, gate: Tensor) -> Tensor:
            x = F.relu(self.bn0(self.stem(x)) * gate.view(1, -1, 1, 1))
            x = F.relu(x + self.bn(self.conv(x)) * gate.view(1, -1, 1, 1))
            return self.linear(x.mean(dim=(2, 3)))

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.bn0(self.stem(x)))
            return self.linear(F.relu(x + self.bn(self.conv(x))).mean(dim=(2, 3)))

    model = Residual().double()
    data = data_of(torch.randn(16, 3, 6, 6, dtype=torch.float64), torch.arange(16) % 4)
    structure, evidence = evidence_of(model, data, batches=1, size=16)
    gate = torch.ones(5, dtype=torch.float64, requires_grad=True)
    images, labels = next(data.train.batches(16, seed=0))
    F.cross_entropy(model.train().gated(images, gate), labels).backward()
    score = Taylor2019().score(structure.group("stem"), evidence)

    bn_identity = sum(
        bn.weight * bn.weight.grad + bn.bias * bn.bias.grad  # type: ignore[operator]
        for bn in (model.bn0, model.bn)
    )
    assert torch.allclose(gate.grad, bn_identity, rtol=1e-9)  # type: ignore[arg-type]
    # The gate of a reader sees the stream once, the producers' gates meet in the addition: the same first order.
    assert torch.allclose(score, gate.grad.square(), rtol=1e-9)  # type: ignore[union-attr]


def test_ranks_as_the_measured_loss_change_does() -> None:
    """First-order scores against the mean squared loss change of zeroing one gate, on a trained network."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(2048) % 4
    centres = torch.randn(4, 3, 6, 6, generator=generator)
    images = centres[labels] + 1.5 * torch.randn(2048, 3, 6, 6, generator=generator)
    data = data_of(images, labels)
    model = _Plain(12, 16)
    settings = TrainingSettings(batch_size=64, lr=0.05)
    train(model, data.train, settings, task=build_task(), samples=60 * 64, seed=0)

    structure, evidence = evidence_of(model, data, batches=32, size=64)
    ranked = [Taylor2019().score(structure.group(name), evidence) for name in ("conv1", "conv2")]
    measured = [torch.zeros(12), torch.zeros(16)]
    with torch.no_grad():
        for batch, targets in data.train.batches(64, seed=0):
            model.train()
            for bn in (model.bn1, model.bn2):
                bn.momentum = 0.0
            full = F.cross_entropy(model(batch), targets)
            for layer, change in enumerate(measured):
                for unit in range(len(change)):
                    gates = [torch.ones(12), torch.ones(16)]
                    gates[layer][unit] = 0
                    change[unit] += (F.cross_entropy(model.gated(batch, *gates), targets) - full) ** 2
    assert spearman(torch.cat(ranked), torch.cat(measured)) > 0.8


def spearman(a: Tensor, b: Tensor) -> float:
    ranks = [x.double().argsort().argsort().double() for x in (a, b)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def test_with_batch_statistics_filters_in_front_of_a_norm_say_nothing_and_gates_behind_it_do() -> None:
    """A norm undoes the scale of a filter: sum of w dL/dw is zero up to its eps, so that units are scored behind it."""
    model = _Plain().double().train()
    images, labels = torch.randn(32, 3, 6, 6, dtype=torch.float64), torch.arange(32) % 4
    F.cross_entropy(model(images), labels).backward()
    for conv, norm in ((model.conv1, model.bn1), (model.conv2, model.bn2)):
        assert conv.weight.grad is not None
        assert norm.weight.grad is not None
        assert norm.bias.grad is not None
        products = (conv.weight * conv.weight.grad).detach().flatten(1)
        assert (products.sum(dim=1).abs() < 1e-2 * products.square().sum(dim=1).sqrt()).all()
        gates = (norm.weight * norm.weight.grad + norm.bias * norm.bias.grad).detach().abs()
        assert gates.min() > 10 * products.sum(dim=1).abs().max()
    _, evidence = evidence_of(model, data_of(images, labels), batches=1, size=32)
    for group in evidence.structure.groups:
        assert (Taylor2019().score(group, evidence) > 0).all()
