from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from autoprune.criteria.chip import Chip, independence
from autoprune.evidence import ModelEvidence
from autoprune.graph import Structure

Look = Callable[[nn.Module, Tensor], tuple[Structure, ModelEvidence]]


def rows(*values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        (rows((1, 0, 0), (0, 1, 0), (1, 1, 0)), [0.4960, 0.4960, 3**0.5 - 1]),
        (rows((3, 0, 0), (0, 2, 0), (0, 0, 1)), [3, 2, 1]),
        (rows((3, 4), (3, 4)), [5 * (2**0.5 - 1)] * 2),
        (rows((3, 4), (0, 0)), [5, 0]),
        (rows((2, 0, 0), (2, 0, 0), (0, 1, 0)), [0.8284, 0.8284, 1.0]),  # the weaker but independent map wins
    ],
)
def test_by_hand(matrix: Tensor, expected: list[float]) -> None:
    assert independence(matrix).tolist() == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("shape", [(6, 9), (7, 7), (9, 4)])
def test_bounds_invariance_and_scale(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64)
    found = independence(matrix)
    assert bool((found >= 0).all())
    assert bool((found <= matrix.norm(dim=1) + 1e-9).all())
    turned = matrix @ torch.linalg.qr(torch.randn(shape[1], shape[1], dtype=torch.float64))[0]
    assert torch.allclose(independence(turned), found, atol=1e-9)
    assert torch.allclose(independence(3.5 * matrix), 3.5 * found, atol=1e-9)


def by_singular_values(matrix: Tensor) -> Tensor:
    def nuclear(one: Tensor) -> Tensor:
        return torch.linalg.svdvals(one).sum()

    found = []
    for row in range(len(matrix)):
        without = matrix.clone()
        without[row] = 0
        found.append(nuclear(matrix) - nuclear(without))
    return torch.stack(found)


@pytest.mark.parametrize("shape", [(5, 12), (8, 8), (12, 5)])
def test_eigenvalues_of_the_gram_matrix_equal_singular_values(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64)
    assert torch.allclose(independence(matrix), by_singular_values(matrix), atol=1e-9)
    matrix[1] = matrix[0]
    assert torch.allclose(independence(matrix), by_singular_values(matrix), atol=1e-6)


def test_the_maps_behind_the_activation_are_scored_sample_by_sample(look: Look) -> None:
    """Concatenating the samples, or reading before the ReLU, gives other numbers."""
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), *head).double()
    images = torch.randn(16, 3, 4, 4, dtype=torch.float64)
    structure, evidence = look(model, images)
    maps = model[:3](images).flatten(2).detach()
    expected = torch.stack([by_singular_values(one) for one in maps]).mean(0)
    score = Chip().score(structure.group("0"), evidence)
    assert torch.allclose(score, expected / expected.mean(), atol=1e-9)
    assert torch.allclose(score.mean(), torch.ones((), dtype=torch.float64))


class _Stream(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 4, 3, padding=1)
        self.back, self.head = nn.Conv2d(4, 5, 3, padding=1), nn.Linear(5, 3)

    def maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = torch.relu(self.stem(x))
        return first, torch.relu(first + self.back(torch.relu(self.inner(first))))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.maps(x)[1].mean((2, 3)))


def test_a_residual_stream_has_one_set_of_units_scored_behind_its_additions(look: Look) -> None:
    model = _Stream().double()
    images = torch.randn(16, 2, 4, 4, dtype=torch.float64)
    structure, evidence = look(model, images)
    expected = []
    for maps in model.maps(images):
        one = torch.stack([by_singular_values(m) for m in maps.detach().flatten(2)]).mean(0)
        expected.append(one / one.mean())
    score = Chip().score(structure.group("stem"), evidence)
    assert torch.allclose(score, torch.stack(expected).mean(0), atol=1e-9)
    small = structure.cut(model, {"stem": score.topk(3).indices.sort().values.tolist()})
    kept = score.topk(3).indices.sort().values
    assert torch.equal(small.stem.weight, model.stem.weight[kept])
    assert torch.equal(small.back.weight, model.back.weight[kept])


def test_fewer_images_are_the_first_ones(look: Look) -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    structure, evidence = look(model, torch.randn(16, 3, dtype=torch.float64))
    one, all_ = (Chip(images=n).score(structure.group("0"), evidence) for n in (1, 16))
    assert not torch.allclose(one, all_)
    # A single sample of a linear layer is one column: everything but the norm of the others is gone with its unit.
    values = next(iter(evidence.activations(structure.group("0"), "read")))[0].flatten().double()
    expected = values.norm() - torch.stack([(values.square().sum() - v * v).clamp_min(0).sqrt() for v in values])
    assert torch.allclose(one, expected / expected.mean(), atol=1e-9)


def test_half_precision_and_a_batch_of_one(look: Look) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3))
    structure, evidence = look(model.bfloat16(), torch.randn(1, 3, 4, 4).bfloat16())
    score = Chip().score(structure.group("0"), evidence)
    assert score.dtype == torch.float64
    assert bool(torch.isfinite(score).all())
