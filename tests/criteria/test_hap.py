from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoprune.criteria.hap import Hap
from autoprune.data import Data, TensorSplit
from autoprune.evidence import Evidence, ModelEvidence, Source
from autoprune.evidence.hessian_traces import row_traces
from autoprune.graph import trace
from autoprune.tasks import Task, build_task

HALF_SQUARES = Task(
    loss=lambda output, targets: 0.5 * (output - targets).square().sum(dim=1).mean(), metric=lambda o, _: (0.0, len(o))
)


def evidence_of(
    model: nn.Module, inputs: Tensor, targets: Tensor, task: Task, batches: int = 1, size: int = 64
) -> ModelEvidence:
    split = TensorSplit(inputs, targets)
    data = Data(split, split, None, "tiny", None, "tiny")
    source = Source(data=data, task=task, batches=batches, batch_size=size, device=torch.device("cpu"))
    return ModelEvidence(model, trace(model.eval(), inputs[:2]), source, seed=0)


def all_signs(weights: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Every sign pattern over all weights together."""
    sizes = [w.numel() for w in weights.values()]
    patterns = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=sum(sizes))), dtype=torch.float64)
    return [
        {name: part.view_as(w) for (name, w), part in zip(weights.items(), row.split(sizes), strict=True)}
        for row in patterns
    ]


def test_one_probe_is_exact_where_the_inputs_are_uncorrelated() -> None:
    """X^T X / 3 = diag(1, 2, 0.5): every probe gives 3.5 for both rows, and S = (3.5, 0.729166...)."""
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Identity(), nn.Linear(2, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2, -1], [0.5, 0, 1]]))
        model[2].weight.copy_(torch.eye(2))
    inputs = torch.diag((3 * torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)).sqrt())
    evidence = evidence_of(model, inputs, torch.randn(3, 2, dtype=torch.float64), HALF_SQUARES, size=3)
    for probe in all_signs({"w": model[0].weight})[::7]:
        found = row_traces(
            {"w": model[0].weight},
            {"w": 0},
            lambda x, y: HALF_SQUARES.loss(model(x), y),
            evidence._source.draw(),
            lambda _, probe=probe: probe,
            1,
        )
        assert found["w"].tolist() == pytest.approx([3.5, 3.5], rel=1e-12)
    with_traces = evidence.with_seed(0)
    with_traces._gathered = {Evidence.HESSIAN_TRACES: found | {"0.weight": found["w"]}}
    score = Hap().score(evidence.structure.group("0"), with_traces)
    assert score.tolist() == pytest.approx([3.5, 0.7291666666666666], rel=1e-12)


def test_curvature_beats_magnitude() -> None:
    """y = u . (W x) with u = (0.5, 2): traces (0.75, 12), S = (0.5, 0.98), variance 3; the larger row goes first."""
    weight = torch.tensor([[2.0, 0, 0], [0, 0.7, 0]], dtype=torch.float64)
    u = torch.tensor([0.5, 2.0], dtype=torch.float64)
    inputs, targets = 3**0.5 * torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (x @ weight.T @ u - y).square().mean()

    def traces(probes: list[dict[str, Tensor]]) -> Tensor:
        return row_traces({"w": weight}, {"w": 0}, loss, [(inputs, targets)], lambda i: probes[i], len(probes))["w"]

    patterns = all_signs({"w": weight})
    assert len(patterns) == 64
    assert traces(patterns).tolist() == pytest.approx([0.75, 12.0], rel=1e-12)
    single = torch.stack([traces([p]) for p in patterns])
    assert single.var(dim=0, correction=0).tolist() == pytest.approx([3.0, 3.0], rel=1e-12)

    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Identity(), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(weight)
        model[2].weight.copy_(u)
    evidence = evidence_of(model, inputs, targets[:, None], HALF_SQUARES, size=3)
    evidence._gathered = {Evidence.HESSIAN_TRACES: {"0.weight": traces(patterns)}}
    assert Hap().score(evidence.structure.group("0"), evidence).tolist() == pytest.approx([0.5, 0.98], rel=1e-12)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(2, 3), nn.Linear(3, 2), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


def test_products_are_those_of_the_true_hessian_whatever_the_batches() -> None:
    model = Mlp().double()
    inputs, labels = torch.randn(12, 2, dtype=torch.float64), torch.arange(12) % 3
    names = ("first.weight", "second.weight")
    weights = {name: dict(model.named_parameters())[name] for name in names}

    def loss_of(*values: Tensor) -> Tensor:
        given = dict(zip(names, values, strict=True))
        return F.cross_entropy(torch.func.functional_call(model, given, (inputs,)), labels)

    blocks = torch.autograd.functional.hessian(loss_of, tuple(weights.values()))  # type: ignore[no-untyped-call]
    probes = all_signs(weights)
    for sizes in ([12], [7, 5]):
        found = row_traces(
            weights,
            dict.fromkeys(names, 0),
            lambda x, y: F.cross_entropy(model(x), y),
            list(zip(inputs.split(sizes), labels.split(sizes), strict=True)),
            lambda i: probes[i],
            len(probes),
        )
        for i, (name, w) in enumerate(weights.items()):
            block = blocks[i][i].reshape(w.numel(), w.numel()).diagonal().view_as(w).sum(dim=1)
            assert torch.allclose(found[name], block.detach(), rtol=1e-8, atol=1e-12)


def test_the_gathered_estimate_is_near_the_exact_trace() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4, 3)).double()
    images, labels = torch.randn(64, 2, 4, 4, dtype=torch.float64), torch.arange(64) % 3
    evidence = evidence_of(model, images, labels, build_task())

    def loss(weight: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, {"0.weight": weight}, (images,)), labels)

    whole = torch.autograd.functional.hessian(loss, model[0].weight)  # type: ignore[no-untyped-call]
    exact = whole.reshape(72, 72).diagonal().view(4, 18).sum(1).detach()  # type: ignore[union-attr]
    group = evidence.structure.group("0")
    found = evidence.hessian_trace(group.producers[0])
    assert torch.allclose(found, exact, rtol=0.5)
    assert torch.corrcoef(torch.stack([found, exact]))[0, 1] > 0.7
    expected = found / 36 * model[0].weight.detach().flatten(1).square().sum(1)
    assert torch.allclose(Hap().score(group, evidence), expected)


def test_members_of_a_stream_are_added_up_or_the_highest_counts() -> None:
    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.one(x) + self.two(x.square())))

    model, inputs = Stream().double(), torch.randn(16, 3, dtype=torch.float64)
    evidence = evidence_of(model, inputs, torch.arange(16) % 3, build_task(), size=16)
    group = evidence.structure.groups[0]
    parts = [
        evidence.hessian_trace(p) / 6 * dict(model.named_parameters())[p.tensor].detach().square().sum(1)
        for p in group.producers
    ]
    assert len(parts) == 2
    assert torch.allclose(Hap().score(group, evidence), parts[0] + parts[1])
    assert torch.allclose(Hap(coupling="union").score(group, evidence), torch.maximum(*parts))
