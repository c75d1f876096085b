from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from autoprune.criteria.energy_aware import EnergyAware, over_batch, per_image
from autoprune.evidence import ModelEvidence
from autoprune.graph import Structure

Look = Callable[[nn.Module, Tensor], tuple[Structure, ModelEvidence]]


def energy(matrix: Tensor) -> float:
    return float(per_image(matrix[None, None]))


def test_by_hand() -> None:
    assert energy(torch.ones(4, 4)) == pytest.approx(4)
    assert energy(torch.ones(3, 5)) == pytest.approx(3.872983)
    assert energy(torch.eye(4)) == pytest.approx(4)  # its Frobenius norm is 2
    assert energy(torch.tensor([[3.0, 0.0], [4.0, 5.0]])) == pytest.approx(8.944272)
    assert energy(torch.tensor([[3.0], [4.0]])) == pytest.approx(5)
    assert energy(torch.tensor([[-3.0]])) == pytest.approx(3)


def test_two_by_two_has_a_closed_form() -> None:
    matrix = torch.randn(2, 2, dtype=torch.float64)
    assert energy(matrix) == pytest.approx(float((matrix.square().sum() + 2 * matrix.det().abs()).sqrt()))


def test_bounds_and_invariances() -> None:
    matrix = torch.randn(5, 7, dtype=torch.float64)
    found, frobenius = energy(matrix), float(matrix.norm())
    assert frobenius < found < 5**0.5 * frobenius
    for same in (matrix.T, matrix.flip(0), matrix[torch.randperm(5)], matrix[:, torch.randperm(7)]):
        assert energy(same) == pytest.approx(found)
    assert energy(3 * matrix) == pytest.approx(3 * found)


def test_maps_of_equal_rank_differ_by_their_strength() -> None:
    maps = torch.stack([torch.eye(4), 0.01 * torch.eye(4)])[None]
    assert per_image(maps).tolist() == pytest.approx([4, 0.04])


def test_the_two_matrices_differ() -> None:
    corners = torch.zeros(2, 1, 3, 3)
    corners[0, 0, 0, 0] = corners[1, 0, 2, 2] = 1
    assert per_image(corners).tolist() == pytest.approx([1])
    assert over_batch(corners).tolist() == pytest.approx([2])


def test_samples_add_up_in_any_portions() -> None:
    maps = torch.randn(13, 3, 4, 4)
    parts = maps.split([5, 5, 3])
    together = sum(per_image(p) * len(p) for p in parts) / 13
    assert torch.allclose(per_image(maps), together, atol=1e-6)


def test_twice_the_resolution_is_twice_the_energy_and_the_same_score(look: Look) -> None:
    maps = torch.randn(8, 5, 4, 4, dtype=torch.float64)
    larger = maps.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert torch.allclose(per_image(larger), 2 * per_image(maps))
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), *head).double()
    images = torch.randn(16, 3, 4, 4, dtype=torch.float64)
    scores = []
    for inputs in (images, images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)):
        structure, evidence = look(model, inputs)
        scores.append(EnergyAware().score(structure.group("0"), evidence))
    assert torch.allclose(*scores)


class _Stream(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.side, self.head = nn.Conv2d(2, 4, 1), nn.Conv2d(2, 4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.stem(x) + self.side(x)).mean((2, 3)))


def test_policies_of_a_stream(look: Look) -> None:
    model = _Stream().double()
    images = torch.randn(16, 2, 3, 3, dtype=torch.float64)
    structure, evidence = look(model, images)
    producers = [per_image(m(images).detach()) for m in (model.stem, model.side)]
    behind = per_image(torch.relu(model.stem(images) + model.side(images)).detach())
    relative = [e / e.mean() for e in (*producers, behind)]
    for policy, expected in (
        ("average", (relative[0] + relative[1]) / 2),
        ("sum", relative[0] + relative[1]),
        ("backward", relative[2]),
    ):
        score = EnergyAware(policy=policy).score(structure.groups[0], evidence)
        assert torch.allclose(score, expected, atol=1e-9), policy


def test_layer_norms(look: Look) -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Identity(), nn.Linear(4, 3)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0, 0], [-2.0, 0, 0], [0, 0, 0], [5.0, 0, 0]]))
    structure, evidence = look(model, torch.ones(16, 3, dtype=torch.float64))
    for layer_norm, expected in (
        ("none", [1, 2, 0, 5]),
        ("mean", [0.5, 1, 0, 2.5]),
        ("tss", [0.125, 0.25, 0, 0.625]),
        ("linear", [0.2, 0.4, 0, 1]),
        ("standard", [(e - 2) / 3.5**0.5 for e in (1, 2, 0, 5)]),
    ):
        score = EnergyAware(layer_norm=layer_norm).score(structure.group("0"), evidence)
        assert score.tolist() == pytest.approx(expected)


def test_a_dead_unit_goes_first(look: Look) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3))
    with torch.no_grad():
        model[0].weight[4], model[0].bias[4] = 0, -1
    structure, evidence = look(model, torch.randn(16, 3, 4, 4))
    for matrix in ("per_image", "batch"):
        score = EnergyAware(matrix=matrix).score(structure.group("0"), evidence)
        assert score[4] == 0
        assert int(score.argmin()) == 4
        assert int((score > 0).sum()) == 5
