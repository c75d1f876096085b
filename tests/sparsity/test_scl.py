"""SCL: the price alone, gradients by hand, and weights that come back."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoprune import masks
from autoprune.sparsity.scl import Scl, _Learning, alive, normalised

from .conftest import MakeContext, network


def started(method: Scl, model: nn.Module, steps: int = 1000, **settings: Any) -> tuple[_Learning, torch.optim.SGD]:
    hook = _Learning(masks.full(model), method)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, **settings)
    hook.begin(model, optimizer, steps)
    return hook, optimizer


def step(hook: _Learning, optimizer: torch.optim.SGD, number: int, gradients: Tensor | float) -> None:
    for weight in hook.weights.values():
        weight.grad = torch.zeros_like(weight) + gradients
    hook.before_step(number)
    optimizer.step()
    hook.after_step(number)


def test_by_the_price_alone_all_weights_but_the_guards_go_on_the_same_step() -> None:
    hook, optimizer = started(Scl(sparsity=0.75, price=0.1, mask_lr=0.5, initial=0.975), nn.Linear(4, 1, bias=False))
    counts = []
    for i in range(20):
        step(hook, optimizer, i, 0.0)
        counts.append(masks.count(hook.masks))
    assert counts == [4] * 19 + [1]
    assert hook._m["weight"][0].tolist() == pytest.approx([-0.025] * 4, abs=1e-6)


def test_gradients_by_hand() -> None:
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.0, -1.0]]))
    hook, _ = started(Scl(sparsity=0.5, price=0.0, mask_lr=1.0, norm="none", clip=1000.0), model)
    hook.set_mask("weight", torch.tensor([[True, False]]))
    (0.5 * model(torch.tensor([[3.0, 5.0]])) ** 2).sum().backward()
    assert model.weight.grad is not None
    assert model.weight.grad.tolist() == [[18.0, 30.0]]
    before = hook._m["weight"].clone()
    hook.before_step(0)
    # the pruned weight's m hears of the gradient, the weight itself does not
    assert (before - hook._m["weight"]).tolist() == [[36.0, -30.0]]
    assert model.weight.grad.tolist() == [[18.0, 0.0]]


def test_normalised_by_feature() -> None:
    raw = torch.tensor([[36.0, -30.0], [0.0, 0.0]])
    assert normalised(raw, "rms").tolist() == [pytest.approx([1.086429, -0.905357], abs=1e-6), [0.0, 0.0]]
    assert normalised(raw, "l2")[0].norm() == pytest.approx(1.0)
    assert torch.equal(normalised(raw, "none"), raw)
    draws = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    scaled = draws * torch.tensor([1.0, 1000.0, 1e-3])[:, None, None, None]
    torch.testing.assert_close(normalised(scaled, "rms"), normalised(draws, "rms"))
    assert float(normalised(draws, "rms").abs().max()) <= math.sqrt(18)


def test_a_needed_weight_comes_back_with_its_value() -> None:
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.0, -1.0]]))
    hook, optimizer = started(Scl(sparsity=0.999, price=0.01, mask_lr=0.05), model)
    hook._wanted = 0  # never frozen
    hook._m["weight"].copy_(torch.tensor([[0.5, -0.1]]))
    step(hook, optimizer, 0, 0.0)
    assert hook.masks["weight"].tolist() == [[True, False]]
    for i in range(1, 5):  # the loss falls with a more negative second weight
        step(hook, optimizer, i, torch.tensor([[0.0, 1.0]]))
    assert hook.masks["weight"].tolist() == [[True, True]]
    assert float(model.weight.detach()[0, 1]) <= -1.0


def test_values_of_pruned_weights_stand_still_under_momentum_and_decay() -> None:
    model = nn.Linear(4, 1, bias=False)
    hook, optimizer = started(Scl(sparsity=0.5, price=0.0, mask_lr=0.0001), model, momentum=0.9, weight_decay=0.1)
    hook._wanted = 0
    hook._m["weight"].copy_(torch.tensor([[0.5, 0.5, -0.5, -0.5]]))
    step(hook, optimizer, 0, 1.0)
    before = hook._values["weight"].clone()
    step(hook, optimizer, 1, 1.0)
    assert torch.equal(hook._values["weight"][0, 2:], before[0, 2:])
    assert not torch.equal(hook._values["weight"][0, :2], before[0, :2])
    assert optimizer.state[model.weight]["momentum_buffer"][0, 2:].tolist() == [0.0, 0.0]


def test_without_price_and_gradient_no_mask_changes() -> None:
    hook, optimizer = started(Scl(sparsity=0.5, price=0.0), nn.Linear(4, 2))
    for i in range(30):
        step(hook, optimizer, i, 0.0)
    assert masks.count(hook.masks) == 8


def test_a_price_above_the_largest_gradient_removes_everything_whatever_the_data(make_context: MakeContext) -> None:
    """No entry of the normalised gradient exceeds the root of its feature's size, here 4 weights."""
    method = Scl(sparsity=0.999, price=3.0, mask_lr=0.1, initial=0.5)
    hook, optimizer = started(method, nn.Linear(4, 3, bias=False))
    hook._wanted = 0
    draws = torch.Generator().manual_seed(0)
    for i in range(math.ceil(0.5 / (0.1 * (3.0 - 2.0)))):
        step(hook, optimizer, i, torch.randn(3, 4, generator=draws))
    assert masks.count(hook.masks) == 1


def test_the_guard_takes_the_largest_of_an_empty_layer() -> None:
    found = alive({"a": torch.tensor([-0.3, -0.1, -0.1]), "b": torch.tensor([0.1, 0.0, 0.2])})
    assert [m.tolist() for m in found.values()] == [[False, True, False], [True, False, True]]


def test_densities_of_layers_differ_and_the_budget_is_met_on_the_way(make_context: MakeContext) -> None:
    found = Scl(sparsity=0.8, epochs=6.0, mask_lr=0.1, price=0.3).sparsify(network(), make_context())
    assert found.notes == ()
    assert masks.count(found.masks) == round(0.2 * 1504)
    densities = [float(m.float().mean()) for m in found.masks.values()]
    assert max(densities) - min(densities) > 0.05


def test_too_low_a_price_is_told(make_context: MakeContext) -> None:
    found = Scl(sparsity=0.8, epochs=1.0, price=1e-3, mask_lr=1e-6).sparsify(network(), make_context())
    assert masks.count(found.masks) == 301
    assert found.notes == ("scl: the price removed too little; 1203 weights of smallest m were taken at the end",)
