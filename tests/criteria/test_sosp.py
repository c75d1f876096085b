"""Both members of SOSP, on losses that are quadratic in the units' weights and on a small network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoprune.criteria.sosp_h import SospH
from autoprune.criteria.sosp_i import SospI, greedy_costs
from autoprune.data import Data, TensorSplit
from autoprune.evidence import Evidence, ModelEvidence, Source
from autoprune.evidence.gates import GatedModel
from autoprune.evidence.unit_curvature import PRODUCERS, all_units_product, gauss_newton_of
from autoprune.graph import trace
from autoprune.tasks import Task, build_task


def evidence_of(
    model: nn.Module, inputs: Tensor, targets: Tensor, task: Task | None = None, batches: int = 1, size: int = 64
) -> ModelEvidence:
    split = TensorSplit(inputs, targets)
    data = Data(split, split, None, "tiny", None, "tiny")
    source = Source(data=data, task=task or build_task(), batches=batches, batch_size=size, device=torch.device("cpu"))
    return ModelEvidence(model, trace(model.eval(), inputs[:2]), source, seed=0)


def quadratic(matrix: Sequence[Sequence[float]], theta: Sequence[float]) -> ModelEvidence:
    """One weight per unit, around the minimum theta of L(t) = (t - theta)^T A (t - theta) / 2."""
    n = len(theta)
    a, minimum = torch.tensor(matrix, dtype=torch.float64), torch.tensor(theta, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(1, n, bias=False), nn.Identity(), nn.Linear(n, n, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(minimum[:, None])
        model[2].weight.copy_(torch.eye(n))

    def loss(output: Tensor, targets: Tensor) -> Tensor:
        away = output - minimum
        return ((away @ a) * away).sum(dim=1).mean() / 2 + 0.0 * targets.sum()

    task = Task(loss=loss, metric=lambda o, _: (0.0, len(o)))
    return evidence_of(model, torch.ones(2, 1, dtype=torch.float64), torch.zeros(2), task, size=2)


def h_of(evidence: ModelEvidence) -> list[float]:
    return SospH().score(evidence.structure.groups[0], evidence).tolist()


def i_of(evidence: ModelEvidence) -> list[float]:
    return SospI().score(evidence.structure.groups[0], evidence).tolist()


def test_quadratic_loss_at_its_minimum() -> None:
    evidence = quadratic([[2, 1], [1, 3]], [1, -1])
    assert h_of(evidence) == pytest.approx([0.5, 1.0])  # the diagonal alone would give 1.0 and 1.5
    gradient, matrix = evidence.gauss_newton()
    assert torch.allclose(gradient, torch.zeros(2, dtype=torch.float64), atol=1e-12)
    assert (matrix.abs() / 2).tolist() == [pytest.approx([1.0, 0.5]), pytest.approx([0.5, 1.5])]
    assert i_of(evidence) == pytest.approx([1.0, 1.5 + 2 * 0.5])


def test_correlation_turns_the_order_round() -> None:
    evidence = quadratic([[4, -3.9, 0], [-3.9, 4, 0], [0, 0, 1]], [1, 1, 1])
    assert h_of(evidence) == pytest.approx([0.05, 0.05, 0.5])
    assert np.argsort(i_of(evidence), kind="stable").tolist() == [2, 0, 1]


def test_positively_correlated_pairs_do_not_go_together() -> None:
    evidence = quadratic([[1, 0.9, 0], [0.9, 1, 0], [0, 0, 1.2]], [1, 1, 1])
    assert np.argsort(i_of(evidence)).tolist() == [0, 2, 1]
    assert np.argsort(evidence.gauss_newton()[1].diagonal().numpy()).tolist() == [0, 1, 2]


def test_signed_sum_is_the_whole_change_of_a_quadratic_loss() -> None:
    root = torch.randn(4, 4)
    a, theta = root @ root.T, torch.randn(4)
    evidence = quadratic(a.tolist(), theta.tolist())
    gradient, product = evidence.unit_curvature(evidence.structure.groups[0], norms=False)
    assert float(gradient.abs().max()) < 1e-12
    away = theta.double()
    assert float(product.sum() / 2) == pytest.approx(float(away @ a.double() @ away / 2), rel=1e-10)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


def dense(model: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradient (16,), Hessian and Gauss-Newton matrix (16, 16) of the first layer; units' theta (4, 16)."""
    weight, bias = model.first.weight.detach(), model.first.bias.detach()  # type: ignore[union-attr]
    flat = torch.cat([weight.flatten(), bias])  # type: ignore[list-item]

    def outputs(p: Tensor) -> Tensor:
        given = {"first.weight": p[:12].view(4, 3), "first.bias": p[12:]}
        return torch.func.functional_call(model, given, (inputs,))

    def loss(p: Tensor) -> Tensor:
        return F.cross_entropy(outputs(p), labels)

    gradient = torch.autograd.functional.jacobian(loss, flat)
    hessian = torch.autograd.functional.hessian(loss, flat)  # type: ignore[no-untyped-call]
    jacobian_NDP = torch.autograd.functional.jacobian(outputs, flat)
    p_ND = outputs(flat).softmax(dim=1).detach()
    r_NDD = torch.diag_embed(p_ND) - p_ND[:, :, None] * p_ND[:, None, :]
    gauss_newton = torch.einsum("ndp,nde,neq->pq", jacobian_NDP, r_NDD, jacobian_NDP) / len(inputs)
    owner = torch.cat([torch.arange(4).repeat_interleave(3), torch.arange(4)])
    theta_SP = torch.stack([flat * (owner == s) for s in range(4)])
    return gradient, hessian, gauss_newton, theta_SP  # type: ignore[return-value]


def small() -> tuple[Mlp, Tensor, Tensor]:
    return Mlp().double(), torch.randn(12, 3, dtype=torch.float64), torch.arange(12) % 3


def test_equal_to_the_dense_hessian_and_gauss_newton_matrix() -> None:
    model, inputs, labels = small()
    gradient, hessian, gauss_newton, theta_SP = dense(model, inputs, labels)
    evidence = evidence_of(model, inputs, labels, size=12)
    expected = (theta_SP @ gradient).abs() + (theta_SP @ hessian @ theta_SP.sum(0)).abs() / 2
    assert torch.allclose(torch.tensor(h_of(evidence), dtype=torch.float64), expected, atol=1e-10, rtol=0)
    single, matrix = evidence.gauss_newton()
    assert torch.allclose(single, theta_SP @ gradient, atol=1e-10, rtol=0)
    assert torch.allclose(matrix, theta_SP @ gauss_newton @ theta_SP.T, atol=1e-10, rtol=0)
    assert float(torch.linalg.eigvalsh(matrix).min()) > -1e-12
    paid = greedy_costs((theta_SP @ gradient).abs().numpy(), (matrix.abs() / 2).numpy())
    assert i_of(evidence) == pytest.approx(paid.tolist())


def test_batches_of_any_size_give_the_same() -> None:
    model, inputs, labels = small()
    structure = trace(model.eval(), inputs[:2])
    gated, task = GatedModel(model, structure, torch.device("cpu"), *PRODUCERS), build_task()
    whole, parts = (list(zip(inputs.split(n), labels.split(n), strict=True)) for n in ([12], [7, 4, 1]))
    assert torch.allclose(all_units_product(gated, task, whole), all_units_product(gated, task, parts), atol=1e-12)
    for a, b in zip(gauss_newton_of(gated, task, whole), gauss_newton_of(gated, task, parts), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("width", [2, 9])
def test_two_gradients_a_batch_for_any_number_of_units(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 3))
    inputs, labels = torch.randn(12, 3), torch.arange(12) % 3
    gated = GatedModel(model, trace(model.eval(), inputs[:2]), torch.device("cpu"), *PRODUCERS)
    calls, real = [], torch.autograd.grad

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    all_units_product(gated, build_task(), zip(inputs.split(4), labels.split(4), strict=True))
    assert len(calls) == 2 * 3


def test_greedy_is_the_same_as_from_scratch() -> None:
    random = np.random.default_rng(0)
    root = random.normal(size=(12, 12))
    single, pair = random.random(12), np.abs(root @ root.T) / 2
    removed: list[int] = []
    bound = 0.0
    paid = np.zeros(12)
    while len(removed) < 12:
        left = [s for s in range(12) if s not in removed]
        bounds = [single[m].sum() + pair[np.ix_(m, m)].sum() for m in ([*removed, s] for s in left)]
        best = int(np.argmin(bounds))
        paid[left[best]], bound = bounds[best] - bound, bounds[best]
        removed.append(left[best])
    found = greedy_costs(single, pair)
    assert found == pytest.approx(paid)
    assert np.argsort(found).tolist() == removed


def test_norms_join_a_unit_when_asked() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double()
    nn.init.uniform_(model[1].bias, 0.5, 1.0)
    images, labels = torch.randn(16, 2, 6, 6, dtype=torch.float64), torch.arange(16) % 3
    evidence = evidence_of(model, images, labels, size=16)
    group = evidence.structure.groups[0]
    model.eval().zero_grad()
    F.cross_entropy(model(images), labels).backward()

    def products(*parameters: Tensor) -> Tensor:
        return sum((p.detach() * p.grad).flatten(1 if p.ndim > 1 else 0).reshape(4, -1).sum(1) for p in parameters)  # type: ignore[misc,return-value]

    conv, bn = model[0], model[1]
    plain, with_norms = (evidence.unit_curvature(group, norms=n)[0] for n in (False, True))
    assert torch.allclose(plain, products(conv.weight, conv.bias), atol=1e-12)
    assert torch.allclose(with_norms, products(conv.weight, conv.bias, bn.weight, bn.bias), atol=1e-12)
    assert not torch.allclose(SospH().score(group, evidence), SospH(include_norm=True).score(group, evidence))


def test_the_matrix_is_gathered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = quadratic([[2, 1], [1, 3]], [1, -1])
    first = i_of(evidence)
    evidence._gathered = {Evidence.GAUSS_NEWTON: evidence.gather(Evidence.GAUSS_NEWTON)}
    monkeypatch.setattr("autoprune.evidence.unit_curvature.gauss_newton_of", None)
    assert i_of(evidence) == first
