from __future__ import annotations

import pytest
import torch
from torch import nn

from autoprune.criteria.flatness import Flatness, fall
from autoprune.data import Data, TensorSplit
from autoprune.evidence import ModelEvidence, Source
from autoprune.graph import trace
from autoprune.tasks import build_task, classification

from .conftest import Look


def single(count: int) -> torch.Tensor:
    return torch.arange(count)[:, None]


def test_the_fall_of_the_top_eigenvalue_is_bounded_and_never_negative() -> None:
    draws = torch.Generator().manual_seed(0)
    for _ in range(20):
        B = torch.randn(5, 5, dtype=torch.float64, generator=draws)
        A = B.T @ B
        top = torch.linalg.eigvalsh(A)[-1]
        found = fall(A, single(5))
        for j in range(5):
            rest = [i for i in range(5) if i != j]
            exact = top - torch.linalg.eigvalsh(A[rest][:, rest])[-1]
            assert 0 <= float(exact) <= float(found[j]) + 1e-12


def test_the_fall_by_its_simplified_formula() -> None:
    A = torch.tensor([[4.0, 1.0, 1.0], [1.0, 3.0, 1.0], [1.0, 1.0, 3.5]], dtype=torch.float64)
    values, vectors = torch.linalg.eigh(A)
    top, u = values[-1], vectors[:, -1].square()
    assert float(u.max()) < 0.5
    assert torch.allclose(fall(A, single(3)), u * (top - A.diagonal()) / (1 - u), atol=1e-12)


def test_a_unit_that_is_the_top_direction_is_looked_at_exactly() -> None:
    """G = diag(5, 1, 1): without the first the radius falls by 4 * lmax(A), without the others by nothing."""
    assert fall(torch.diag(torch.tensor([5.0, 1.0, 1.0]).double()), single(3)).tolist() == pytest.approx([4.0, 0, 0])
    whole = fall(torch.diag(torch.tensor([2.0, 1.0]).double()), torch.tensor([[0, 1]]))
    assert whole.tolist() == [2.0]


def test_blocks_of_a_convolution_go_together() -> None:
    B = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    A = B.T @ B
    top = torch.linalg.eigvalsh(A)[-1]
    found = fall(A, torch.tensor([[0, 1], [2, 3], [4, 5]]))
    exact = [float(top - torch.linalg.eigvalsh(A[r][:, r])[-1]) for r in ([2, 3, 4, 5], [0, 1, 4, 5], [0, 1, 2, 3])]
    assert all(0 <= e <= float(f) + 1e-12 for e, f in zip(exact, found, strict=True))


def test_a_dead_unit_changes_nothing_and_goes_before_any_that_is_missed(look: Look) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        model[0].bias[2] = -100.0
    inputs = torch.randn(16, 4)
    structure, evidence = look(model, inputs)
    group = structure.groups[0]
    change, loss = evidence.removal_changes(group)
    assert float(change[2]) == 0.0
    assert loss == pytest.approx(float(build_task().loss(model(inputs), torch.arange(16) % 3).detach()), rel=1e-5)
    score = Flatness(alpha=0.0).score(group, evidence)
    assert torch.allclose(score, change / loss)
    missed = [i for i in range(6) if float(change[i]) > 0]
    assert missed
    assert all(float(score[2]) < float(score[i]) for i in missed)
    gain = score - Flatness(alpha=1.0).score(group, evidence)
    assert float(gain[2]) == pytest.approx(0.0, abs=1e-12)
    assert bool((gain >= -1e-12).all())


def test_the_change_is_exact_for_a_quadratic_loss() -> None:
    """-mean(h) + 1/2 mean(h'^2) against the loss without each unit, for a squared loss whose Fisher is one gradient."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    inputs, targets = torch.randn(32, 3, dtype=torch.float64), torch.randn(32, 1, dtype=torch.float64)
    hidden = torch.tanh(model[0](inputs)).detach()
    weights, residual = model[2].weight.detach()[0], (model(inputs) - targets).detach()
    # d loss_n / d gate_j by the true labels, and of the output alone, whose squares are the exact curvature
    first, second = hidden * weights * residual, hidden * weights
    change = -first.mean(dim=0) + 0.5 * second.square().mean(dim=0)
    loss = 0.5 * residual.square().mean()
    for j in range(5):
        less = 0.5 * (residual[:, 0] - second[:, j]).square().mean()
        assert float(change[j]) == pytest.approx(float(less - loss), abs=1e-12)


def test_the_first_order_part_is_that_of_true_labels_and_of_all_readers(look: Look) -> None:
    """Two layers read the units: the gates' derivatives are those of gates in front of both."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 3), nn.Conv2d(4, 3, 3)

        def forward(self, x: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
            y = self.a(x).tanh()
            y = y if gate is None else y * gate[:, :, None, None]
            return (self.b(y) * self.c(y).sigmoid()).mean(dim=(2, 3))

    torch.manual_seed(0)
    model, inputs = Two().eval(), torch.randn(16, 2, 5, 5)
    structure, evidence = look(model, inputs)
    (group,) = structure.groups
    gate = torch.ones(16, 4, requires_grad=True)
    targets = torch.arange(16) % 3
    losses = classification().loss(model(inputs, gate), targets) * 16
    h = torch.autograd.grad(losses, gate)[0]
    change, _ = evidence.removal_changes(group)
    second = change + h.mean(dim=0)
    assert bool((second >= -1e-7).all())  # a mean of squares is left
    assert float(second.abs().max()) > 1e-8


def test_factors_are_those_of_the_layers(look: Look) -> None:
    torch.manual_seed(0)
    model, inputs = (
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)),
        torch.randn(16, 2, 4, 4),
    )
    _, evidence = look(model, inputs)
    found = evidence.curvature("0")
    assert found is not None
    A, G = found
    patches = nn.functional.unfold(inputs, 3).transpose(1, 2).flatten(0, 1)
    rows = torch.cat([patches, torch.ones(len(patches), 1)], dim=1).double()
    assert torch.allclose(A, rows.T @ rows / 16, rtol=1e-5, atol=1e-6)
    assert G.shape == (3, 3)
    assert bool((torch.linalg.eigvalsh(G) >= -1e-9).all())
    assert evidence.curvature("3") is not None


def test_a_group_that_no_layer_reads_has_no_change() -> None:
    from autoprune.errors import NotApplicable

    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    inputs = torch.randn(8, 2, 6, 6)
    split = TensorSplit(inputs, torch.arange(8) % 4)
    structure = trace(model.eval(), inputs[:2])
    data = Data(split, split, None, "tiny", 4, "tiny")
    source = Source(data=data, task=build_task(), batches=1, batch_size=8, device=torch.device("cpu"))
    for group in structure.groups:
        with pytest.raises(NotApplicable, match="no convolution or linear layer reads it"):
            Flatness().score(group, ModelEvidence(model, structure, source, seed=0))
