from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from autoprune.criteria.compensation_rank import CompensationRank, Reader, rank
from autoprune.evidence import ModelEvidence
from autoprune.graph import Structure

Look = Callable[[nn.Module, Tensor], tuple[Structure, ModelEvidence]]


def reader(weight: Tensor, covariance: Tensor, block: int = 1) -> Reader:
    return Reader(weight, covariance, torch.arange(len(covariance)).reshape(-1, block))


def test_by_hand() -> None:
    """Weight magnitude would remove unit 2, the worst choice: 0 leaves 0.19, 1 leaves 0.2736 and 2 leaves 0.32."""
    covariance = torch.tensor([[1, 0.9, 0], [0.9, 1, 0], [0, 0, 0.5]], dtype=torch.float64)
    weight = torch.tensor([[1, 1.2, 0.8]], dtype=torch.float64)
    one = reader(weight, covariance)
    assert one.gains()[0].tolist() == pytest.approx([4.3264, 4.41, 0.32])
    order, errors = rank([reader(weight, covariance)])
    assert order.tolist() == [1, 2, 0]
    assert float(errors[2]) == pytest.approx(0.19)
    for removed, left in ((0, 0.19), (1, 0.2736), (2, 0.32)):
        assert least_error(weight, covariance, [k for k in range(3) if k != removed]) == pytest.approx(left)


def least_error(weight: Tensor, covariance: Tensor, kept: list[int]) -> float:
    before = torch.trace(weight @ covariance @ weight.T)
    if not kept:
        return float(before)
    mixed = weight @ covariance[:, kept]
    return float(before - torch.trace(mixed @ torch.linalg.solve(covariance[kept][:, kept], mixed.T)))


@pytest.mark.parametrize("block", [1, 3])
def test_equals_choosing_by_the_recomputed_error(block: int) -> None:
    units = 6
    data = torch.randn(300, units * block, dtype=torch.float64) @ torch.randn(units * block, units * block).double()
    covariance, weight = data.T @ data / 300, torch.randn(4, units * block, dtype=torch.float64)
    order, errors = rank([reader(weight, covariance, block)])
    chosen: list[int] = []
    for expected in range(units):
        kept = [r for u in chosen for r in range(u * block, (u + 1) * block)]
        assert float(errors[expected]) == pytest.approx(least_error(weight, covariance, kept), rel=1e-8)
        tried = {
            u: least_error(weight, covariance, [*kept, *range(u * block, (u + 1) * block)])
            for u in range(units)
            if u not in chosen
        }
        chosen.append(min(tried, key=lambda u: tried[u]))
    assert order.tolist() == chosen


def test_copies_and_constants_are_never_chosen(look: Look) -> None:
    """Unit 3 repeats unit 1; unit 2 is constant, with the largest weights by far."""
    model = nn.Sequential(nn.Linear(3, 5), nn.Identity(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        model[0].weight[3], model[0].bias[3] = model[0].weight[1], model[0].bias[1]
        model[0].weight[2] = 0
        model[0].bias[2] = 7
        model[2].weight[:, 2] = 50
    structure, evidence = look(model, torch.randn(16, 3, dtype=torch.float64))
    score = CompensationRank().score(structure.group("0"), evidence)
    assert float(score[2]) == 0
    assert sorted([float(score[1]), float(score[3])])[0] == 0
    assert int((score > 0).sum()) == 3
    assert float(score.max()) == pytest.approx(1, abs=1e-6)


class _Readers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(6, 3)
        self.readers = nn.ModuleList([nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 1)])

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.head(sum(r(x) for r in self.readers).mean((2, 3)))


def test_gains_of_several_readers_add_up(look: Look) -> None:
    model = _Readers().double()
    structure, evidence = look(model, torch.randn(16, 2, 5, 5, dtype=torch.float64))
    score = CompensationRank().score(structure.group("first"), evidence)
    best = int(score.argmax())
    errors = []
    for unit in range(4):
        total = 0.0
        for index, taps in ((0, 9), (1, 1)):
            mean, second = evidence.input_moments(f"readers.{index}")  # type: ignore[misc]
            weight = model.readers[index].weight.detach().flatten(1)
            kept = list(range(unit * taps, (unit + 1) * taps))
            total += least_error(weight, second - torch.outer(mean, mean), kept)
        errors.append(total)
    assert best == errors.index(min(errors))


class _Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], 1))


def test_what_other_groups_express_is_worth_nothing(look: Look) -> None:
    model = _Joined().double()
    with torch.no_grad():
        model.left.weight[0], model.left.bias[0] = model.right.weight[2], model.right.bias[2]
        model.head.weight[:, 0] *= 100
    structure, evidence = look(model, torch.randn(16, 3, dtype=torch.float64))
    score = CompensationRank().score(structure.group("left"), evidence)
    assert float(score[0]) == 0
    assert bool((score[1:] > 0).all())


def test_kernel_taps_that_see_padding_only_are_no_obstacle(look: Look) -> None:
    """A 3x3 convolution on maps of one pixel reads it with one of its nine taps."""
    model = nn.Sequential(nn.Conv2d(4, 5, 1), nn.ReLU(), nn.Conv2d(5, 6, 3, padding=1), nn.Flatten(), nn.Linear(6, 3))
    structure, evidence = look(model.double(), torch.randn(16, 4, 1, 1, dtype=torch.float64))
    score = CompensationRank().score(structure.group("0"), evidence)
    weight = model[2].weight.detach()[:, :, 1, 1]
    mean, second = evidence.input_moments("2")  # type: ignore[misc]
    centre = torch.arange(5) * 9 + 4
    spread = (second - torch.outer(mean, mean))[centre][:, centre]
    order, _ = rank([reader(weight, spread)])
    assert score.argsort(descending=True).tolist() == order.tolist()
    assert bool((score > 0).all())


def test_half_precision_and_a_batch_of_one(look: Look) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3))
    structure, evidence = look(model.bfloat16(), torch.randn(1, 3, 4, 4).bfloat16())
    score = CompensationRank().score(structure.group("0"), evidence)
    assert score.dtype == torch.float64
    assert bool(torch.isfinite(score).all())
