from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoprune.graph import trace
from autoprune.recovery.thinet_rescale import ThinetRescale, factors

MakeCut = Callable[..., tuple[nn.Module, nn.Module, Any, Tensor]]


def test_a_repeated_unit_is_taken_over() -> None:
    """Columns (b, b, e), keep {1, 2}: factors (2, 1), residual 0."""
    b, e = torch.randn(2, 30, dtype=torch.float64)
    rows, kept = torch.stack([b, b, e], dim=1), torch.tensor([1, 2])
    found = factors(rows.T @ rows, kept)
    assert found.tolist() == pytest.approx([2, 1], abs=1e-6)
    assert float((rows.sum(1) - rows[:, kept] @ found).norm()) < 1e-6


def test_least_squares_never_hurts_and_leaves_an_orthogonal_residual() -> None:
    rows = torch.randn(100, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    kept = torch.tensor([0, 2, 5])
    found = factors(rows.T @ rows / 100, kept)
    residual = rows.sum(1) - rows[:, kept] @ found
    assert float(residual.norm()) < float((rows.sum(1) - rows[:, kept].sum(1)).norm())
    # The ridge of 1e-8 is what keeps it from exactly zero.
    assert float((rows[:, kept].T @ residual).abs().max()) < 1e-6 * float(rows.square().sum())


def test_repeated_and_dead_units_among_the_kept_ones_are_no_trouble() -> None:
    b, e = torch.randn(2, 30, dtype=torch.float64)
    rows, kept = torch.stack([b, b, 0 * b, e], dim=1), torch.tensor([0, 1, 2])
    found = factors(rows.T @ rows, kept)
    assert bool(torch.isfinite(found).all())
    assert float(found[2]) == 1
    assert factors(torch.zeros(3, 3, dtype=torch.float64), torch.tensor([0, 2])).tolist() == [1, 1]


def test_a_cut_network_gets_its_output_back_where_units_repeat(make_cut: MakeCut) -> None:
    """A flattened convolution: each unit has 16 columns in the next layer, all scaled alike."""
    torch.manual_seed(1)
    convs = (nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1), nn.ReLU())
    model = nn.Sequential(*convs, nn.Flatten(), nn.Linear(48, 4)).double()
    with torch.no_grad():
        for tensor in (*model[0].parameters(),):
            tensor[2:] = tensor[:2]
        model[2].weight[:, 2:] = model[2].weight[:, :2]
    inputs = torch.randn(64, 3, 4, 4, dtype=torch.float64)
    base, cut, context, _ = make_cut(model, inputs, {"0": [1, 2]})
    weight = cut[2].weight.detach().clone()  # type: ignore[index]
    ThinetRescale().recover(cut, context, 0.0)
    assert torch.allclose(cut[2].weight, 2 * weight, rtol=1e-5)  # type: ignore[index]
    assert torch.allclose(cut(inputs), base(inputs), atol=1e-5)


def test_it_brings_the_next_layer_closer(make_cut: MakeCut) -> None:
    base, cut, context, inputs = make_cut()
    before = (cut[:3](inputs) - base[:3](inputs)).square().mean()  # type: ignore[index]
    bias = cut[2].bias.clone()  # type: ignore[index]
    ThinetRescale().recover(cut, context, 0.0)
    assert (cut[:3](inputs) - base[:3](inputs)).square().mean() < before  # type: ignore[index]
    assert torch.equal(cut[2].bias, bias)  # type: ignore[index]


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads, self.head_dim = 3, 4
        self.qkv, self.proj, self.head = nn.Linear(6, 36), nn.Linear(12, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head(self.proj(out.transpose(1, 2).reshape(n, t, self.heads * self.head_dim)).mean(1))


def test_units_that_share_an_axis_are_scaled_where_they_still_are(make_cut: MakeCut) -> None:
    model = _Attention().double()
    inputs = torch.randn(64, 5, 6, dtype=torch.float64)
    structure = trace(model.eval(), inputs[:2])
    keep = {g.name: list(range(1, g.size)) for g in structure.groups if g.name.startswith("qkv")}
    assert sorted(keep) == ["qkv#head", "qkv#head_dim"]
    _, cut, context, _ = make_cut(model, inputs, keep)
    before = cut.proj.weight.detach().clone()  # type: ignore[union-attr]
    ThinetRescale().recover(cut, context, 0.0)
    factor_HD = (cut.proj.weight / before)[0].reshape(2, 3)  # type: ignore[union-attr]
    heads, dims = factor_HD[:, :1] / factor_HD[:1, :1], factor_HD[:1]
    assert torch.allclose(factor_HD, heads * dims)
    assert not torch.allclose(factor_HD, torch.ones_like(factor_HD), rtol=1e-3)
