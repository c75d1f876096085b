"""Pairs fitted to outputs, held against plain SVD, brute force and hand-made cases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoprune.evidence.input_moments import rows_of
from autoprune.lowrank._responses import best_factors, refitted
from autoprune.lowrank.svd import Svd

Moments = tuple[Tensor, Tensor]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs_of(channels: int) -> Tensor:
    """Return (24, channels, 7, 6) with unequal, dependent channels that are never negative."""
    mixed = torch.einsum("nchw,cd->ndhw", draw(24, channels, 7, 6, seed=5), draw(channels, channels, seed=6) ** 3)
    return (mixed + 0.5).relu()


def moments_of(module: Any, inputs: Tensor) -> Moments:
    rows = rows_of(module, inputs)
    return rows.mean(dim=0), rows.T @ rows / len(rows)


def error(module: nn.Module, thin: nn.Module, inputs: Tensor) -> float:
    with torch.no_grad():
        return float((module(inputs) - thin(inputs)).square().sum())


def convolution(*, bias: bool, **keywords: Any) -> nn.Module:
    module = nn.Conv2d(5, 6, (3, 2), bias=bias, **keywords).double()
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=i))
    return module


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scheme", ["channel", "spatial"])
@pytest.mark.parametrize("rank", [1, 2, 4])
@pytest.mark.parametrize("keywords", [{}, {"stride": 2, "padding": 1}, {"padding": "same", "dilation": 2}])
def test_outputs_are_nearer_than_with_plain_svd(bias: bool, scheme: str, rank: int, keywords: dict[str, Any]) -> None:
    module, inputs = convolution(bias=bias, **keywords), inputs_of(5)
    plain = error(module, Svd(scheme=scheme).factor(module, rank), inputs)
    fitted = Svd(scheme=scheme, reconstruct="outputs").factor(module, rank, moments_of(module, inputs))
    assert error(module, fitted, inputs) < plain


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_no_pair_of_linear_layers_comes_nearer(rank: int) -> None:
    """The optimum by another route: SVD of W L with S = L L^T, and the inverse of L; and a long descent."""
    module = nn.Linear(4, 5).double()
    inputs = draw(50, 4, seed=1) @ draw(4, 4, seed=2) + torch.tensor([3.0, -1.0, 0.0, 2.0]).double()
    moments = moments_of(module, inputs)
    fitted: Any = Svd(reconstruct="outputs").factor(module, rank, moments)
    found = error(module, fitted, inputs)
    root = torch.linalg.cholesky(moments[1] - torch.outer(moments[0], moments[0]))
    U, S, V = torch.linalg.svd(module.weight.detach() @ root)
    weight = (U[:, :rank] * S[:rank]) @ V[:rank] @ torch.linalg.inv(root)
    torch.testing.assert_close(fitted[1].weight @ fitted[0].weight, weight)
    assert found == pytest.approx(len(inputs) * float(S[rank:].square().sum()))
    left, right, shift = (draw(*s, seed=9).requires_grad_() for s in ((5, rank), (rank, 4), (5,)))
    optimiser = torch.optim.LBFGS([left, right, shift], max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = (F.linear(inputs, left @ right, shift) - module(inputs).detach()).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[arg-type]
    assert found <= float(closure().detach()) * (1 + 1e-6)


def test_the_bias_restores_the_mean() -> None:
    module, inputs = convolution(bias=True, padding=1), inputs_of(5)
    for scheme in ("channel", "spatial"):
        fitted = Svd(scheme=scheme, reconstruct="outputs").factor(module, 2, moments_of(module, inputs))
        torch.testing.assert_close(fitted(inputs).mean(dim=(0, 2, 3)), module(inputs).mean(dim=(0, 2, 3)))


def test_an_input_that_never_varies_costs_no_rank() -> None:
    # the largest weight reads what is always 0; plain SVD keeps it, outputs do not need it
    module = nn.Linear(3, 3, bias=False).double()
    module.weight.data = torch.diag(torch.tensor([9.0, 2.0, 1.0])).double()
    inputs = draw(20, 3) * torch.tensor([0.0, 1.0, 1.0]).double()
    fitted = Svd(reconstruct="outputs").factor(module, 2, moments_of(module, inputs))
    assert error(module, fitted, inputs) < 1e-20
    assert error(module, Svd().factor(module, 2), inputs) > 1


@pytest.mark.parametrize("scheme", ["channel", "spatial"])
def test_full_rank_reproduces_the_layer(scheme: str) -> None:
    module, inputs = convolution(bias=True, padding=1), inputs_of(5)
    full = 6 if scheme == "channel" else 12
    fitted = Svd(scheme=scheme, reconstruct="outputs").factor(module, full, moments_of(module, inputs))
    torch.testing.assert_close(fitted(inputs), module(inputs))


def test_both_factors_share_the_scale_and_dead_outputs_do_no_harm() -> None:
    matrix = draw(4, 3) * torch.tensor([1.0, 0.0, 5.0]).double()
    left, right = best_factors(matrix, torch.eye(4).double(), 3)
    torch.testing.assert_close(left @ right, matrix)
    torch.testing.assert_close(left.norm(dim=0)[:2], right.norm(dim=1)[:2])
    assert bool(left.isfinite().all() and right.isfinite().all())


def test_refitting_leaves_alone_what_shows_in_no_output() -> None:
    spread = torch.diag(torch.tensor([1.0, 1.0, 0.0])).double()
    start = draw(3, 2)
    found = refitted(draw(3, 2, seed=1), spread, torch.eye(3).double(), start)
    torch.testing.assert_close(found[:2], draw(3, 2, seed=1)[:2])
    assert torch.equal(found[2], start[2])


def test_energy_of_outputs_is_what_the_error_leaves() -> None:
    module, inputs = convolution(bias=False), inputs_of(5)
    moments, method = moments_of(module, inputs), Svd(scheme="channel", reconstruct="outputs", ranks="energy")
    weight: Any = module.weight
    told = method.kept_energy(weight.detach(), moments[1])
    whole = float(module(inputs).detach().square().sum())
    for rank in (1, 3, 6):
        kept = 1 - error(module, method.factor(module, rank, moments), inputs) / whole
        assert float(told[rank - 1]) == pytest.approx(kept)
