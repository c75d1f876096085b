from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from autoprune.criteria.thinet import Thinet, greedy_choice, greedy_removal
from autoprune.errors import NotApplicable
from autoprune.evidence import ModelEvidence
from autoprune.graph import Structure, trace
from autoprune.models import build_model

Look = Callable[[nn.Module, Tensor], tuple[Structure, ModelEvidence]]


def removed_by_definition(rows: Tensor) -> tuple[list[int], list[float]]:
    gone: list[int] = []
    costs = []
    while len(gone) < rows.shape[1]:
        tried = {j: float(rows[:, [*gone, j]].sum(1).square().sum()) for j in range(rows.shape[1]) if j not in gone}
        best = min(tried, key=lambda j: tried[j])
        gone.append(best)
        costs.append(tried[best])
    return gone, costs


def test_removal_equals_its_definition() -> None:
    rows = torch.randn(200, 10, dtype=torch.float64)
    order, costs = greedy_removal(rows.T @ rows)
    expected, expected_costs = removed_by_definition(rows)
    assert order.tolist() == expected
    assert costs.tolist() == pytest.approx(expected_costs)


def test_units_that_cancel_each_other_go_together() -> None:
    """By its own energy unit 1 would go second: {0, 1} costs 2.0506."""
    rows = torch.tensor([[1.0, 0.0, -1.2, 0.0], [0.0, 1.025, 0.0, 0.0], [0.0, 0.0, 0.0, 3.0]], dtype=torch.float64)
    order, costs = greedy_removal(rows.T @ rows)
    assert set(order[:2].tolist()) == {0, 2}
    assert float(costs[1]) == pytest.approx(0.04)


def chosen_by_definition(rows: Tensor) -> tuple[list[int], list[float]]:
    target = rows.sum(1)
    residual, chosen, residuals = target, [], []
    while len(chosen) < rows.shape[1]:
        residuals.append(float(residual.square().sum()))
        tried = {
            j: float((residual - (rows[:, j] @ residual) / rows[:, j].square().sum() * rows[:, j]).square().sum())
            for j in range(rows.shape[1])
            if j not in chosen
        }
        chosen.append(min(tried, key=lambda j: tried[j]))
        fit = torch.linalg.lstsq(rows[:, chosen], target[:, None]).solution[:, 0]
        residual = target - rows[:, chosen] @ fit
    return chosen, residuals


def test_choice_equals_its_definition() -> None:
    rows = torch.randn(200, 8, dtype=torch.float64) @ torch.randn(8, 8, dtype=torch.float64)
    order, residuals = greedy_choice(rows.T @ rows)
    expected, expected_residuals = chosen_by_definition(rows)
    assert order.tolist() == expected
    assert residuals.tolist() == pytest.approx(expected_residuals)


def test_choice_leaves_out_what_is_dead_or_repeated() -> None:
    rows = torch.randn(50, 4, dtype=torch.float64)
    rows = torch.cat([rows, rows[:, :1], torch.zeros(50, 1, dtype=torch.float64)], dim=1)
    order, _ = greedy_choice(rows.T @ rows)
    assert len(order) == 4
    assert len({0, 4} & set(order.tolist())) == 1
    assert 5 not in order.tolist()


class _Readers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(6, 3)
        self.readers = nn.ModuleList([nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 1)])

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.head(sum(reader(x) for reader in self.readers).mean((2, 3)))


@pytest.mark.parametrize("variant", ["remove", "omp"])
def test_readers_count_alike_whatever_their_scale(look: Look, variant: str) -> None:
    model = _Readers().double()
    images = torch.randn(16, 2, 4, 4, dtype=torch.float64)
    structure, evidence = look(model, images)
    before = Thinet(variant=variant).score(structure.group("first"), evidence)
    with torch.no_grad():
        model.readers[1].weight *= 100
    structure, evidence = look(model, images)
    assert torch.allclose(Thinet(variant=variant).score(structure.group("first"), evidence), before, rtol=1e-9)


def test_scores_follow_the_greedy_order_and_not_the_own_weights(look: Look) -> None:
    """Units 0 and 2 cancel in the next layer: they go first, though unit 1 alone matters less than unit 2."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Identity(), nn.Linear(4, 3)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 1.025, 0, 0], [-1.2, 0, 0, 0], [0, 0, 3.0, 0]]))
        model[2].weight.fill_(1.0)
    structure, evidence = look(model, torch.eye(4, dtype=torch.float64).repeat(4, 1))
    score = Thinet().score(structure.group("0"), evidence)
    assert score.argsort().tolist() == [0, 2, 1, 3]
    whole = 0.2**2 + 1.025**2 + 3**2
    assert score[[0, 3]].tolist() == pytest.approx([1 / whole, 1], abs=1e-6)


def test_a_unit_behind_a_flatten_adds_up_its_positions(look: Look) -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5)).double()
    structure, evidence = look(model, torch.randn(16, 1, 2, 2, dtype=torch.float64))
    (gram,) = evidence.next_layer(structure.group("0")).values()
    assert gram.shape == (3, 3)
    drawn = torch.cat([b for b, _ in evidence._source.draw()])
    outputs = (model(drawn) - model[3].bias).detach()
    # All outputs instead of the ten that were drawn of each image: the same within their spread.
    assert float(gram.sum()) == pytest.approx(float(outputs.square().mean()), rel=0.3)


def test_without_a_reader_it_does_not_apply(look: Look) -> None:
    model = nn.Sequential(nn.Conv3d(1, 4, 1), nn.ReLU(), nn.Conv3d(4, 3, 1), nn.Flatten(), nn.Linear(3, 3))
    structure, evidence = look(model, torch.randn(16, 1, 1, 1, 1))
    with pytest.raises(NotApplicable, match="group '0' is read by no linear layer"):
        Thinet().score(structure.group("0"), evidence)


@pytest.mark.parametrize(
    ("widths", "params", "flops"),
    [
        ((44, 89, 179, 358), 16.95e6, 5.203e9),
        ((32, 64, 128, 256), 12.38e6, 3.644e9),
        ((19, 38, 76, 153), 8.67e6, 2.333e9),
    ],
)
def test_published_sizes_of_resnet_50(widths: tuple[int, ...], params: float, flops: float) -> None:
    """Inner widths of every stage; FLOPs with the stride where torchvision has it."""
    structure = resnet_50()
    keep = {
        f"layer{stage + 1}.{block}.{conv}": list(range(widths[stage]))
        for stage, blocks in enumerate((3, 4, 6, 3))
        for block in range(blocks)
        for conv in ("conv1", "conv2")
    }
    assert structure.params(keep) == pytest.approx(params, abs=5e3)
    assert structure.flops(keep) == pytest.approx(flops, abs=5e5)


@functools.cache
def resnet_50() -> Structure:
    return trace(build_model({"name": "resnet50"}), torch.zeros(1, 3, 224, 224), verify=False)
