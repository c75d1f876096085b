"""RigL: ERK densities, the cosine, one update by hand, dense gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autoprune import masks
from autoprune.masks import Hold
from autoprune.sparsity._densities import removed_fractions, zeros
from autoprune.sparsity.rigl import Rigl, maskable, moved_share, rigged

from .conftest import MakeContext, network

SHAPES = {"a": (8, 3, 3, 3), "b": (16, 8, 3, 3), "c": (32, 16, 3, 3), "d": (10, 32)}
SIZES = {"a": 216, "b": 1152, "c": 4608, "d": 320}


@pytest.mark.parametrize(
    ("sparsity", "removed", "kept"),
    [
        (0.8, [0.266731, 0.757374, 0.890818, 0.0], [159, 280, 504, 320]),
        (0.9, None, [76, 133, 239, 186]),
        (0.5, None, [216, 933, 1680, 320]),
    ],
)
def test_erk_densities_are_those_of_the_authors_code(
    sparsity: float, removed: list[float] | None, kept: list[int]
) -> None:
    found = removed_fractions(SHAPES, sparsity, "erk")
    assert [SIZES[n] - zeros(SIZES[n], s) for n, s in found.items()] == kept
    if removed is not None:
        assert list(found.values()) == pytest.approx(removed, abs=1e-6)


def test_er_leaves_kernel_sides_out_and_uniform_is_uniform() -> None:
    assert removed_fractions(SHAPES, 0.9, "uniform") == dict.fromkeys(SHAPES, 0.9)
    found = removed_fractions({"a": (10, 20, 3, 3), "b": (40, 40, 3, 3)}, 0.9, "er")
    # densities in proportion to 30 / 200 and 80 / 1600, a factor of 3
    assert (1 - found["a"]) / (1 - found["b"]) == pytest.approx(3)
    assert removed_fractions(SHAPES, 0.9, "erk", power=0.0) == pytest.approx(dict.fromkeys(SHAPES, 0.9), abs=1e-3)


def test_the_share_that_moves_falls_along_a_cosine() -> None:
    found = [moved_share(t, 1000, 0.3) for t in (0, 250, 500, 750, 1000)]
    assert found == pytest.approx([0.3, 0.256066, 0.15, 0.043934, 0.0], abs=1e-6)


def test_an_update_by_hand() -> None:
    weight = torch.tensor([0.5, -0.1, 0.3, 0, 0, 0, -0.2, 0])
    mask = torch.tensor([1, 1, 1, 0, 0, 0, 1, 0], dtype=torch.bool)
    gradient = torch.tensor([0, 9.0, 0, 1, -5, 2, 0, 0.5])
    found = rigged(weight, mask, gradient, 0.5)
    assert found.int().tolist() == [1, 1, 1, 0, 1, 0, 0, 0]


def test_a_weight_dropped_and_grown_at_once_keeps_value_and_momentum() -> None:
    model = nn.Linear(8, 1, bias=False)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0, 1, 0]], dtype=torch.bool)
    hook = Rigl(interval=1, alpha=1.0, end=1.0).hold({"weight": mask}, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.5, -0.1, 0.3, 0, 0, 0, -0.2, 0]]))
    hook.begin(model, optimizer, 2)
    optimizer.state[model.weight]["momentum_buffer"] = torch.ones(1, 8)
    model.weight.grad = torch.tensor([[0, 9.0, 0, 1, -5, 2, 0, 0.5]])
    # half of the way to the end: f = alpha / 2
    assert hook.before_step(1)
    assert hook.masks["weight"].int().tolist() == [[1, 1, 1, 0, 1, 0, 0, 0]]
    assert model.weight.detach()[0].tolist() == pytest.approx([0.5, -0.1, 0.3, 0, 0, 0, 0, 0])
    assert optimizer.state[model.weight]["momentum_buffer"][0].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]


def test_growing_does_not_change_the_function_when_only_zeros_are_dropped() -> None:
    torch.manual_seed(0)
    model, inputs = nn.Linear(6, 3), torch.randn(5, 6)
    mask = torch.zeros(3, 6, dtype=torch.bool)
    mask[:, :4] = True
    with torch.no_grad():
        model.weight.mul_(mask)
        model.weight[:, 3] = 0.0
    before = model(inputs)
    found = rigged(model.weight.detach(), mask, torch.randn(3, 6), 0.25)
    with torch.no_grad():
        model.weight.mul_(found)
    assert int(found.sum()) == 12
    assert not torch.equal(found, mask)
    assert torch.equal(model(inputs), before)


def test_the_first_update_finds_the_input_that_alone_explains_the_target(make_context: MakeContext) -> None:
    inputs = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    context = make_context(inputs, (inputs[:, 3] > 0).long())
    model = nn.Linear(4, 2, bias=False)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)
    method = Rigl(interval=4, alpha=1.0, end=0.5)
    hook = method.hold({"weight": mask}, seed=0)
    context.train(model, 2.0, hook)  # 16 steps, one update at the fourth, of half of the weights
    assert bool(hook.masks["weight"][:, 3].all())
    assert hook.masks["weight"].sum() == 4


def test_counts_of_layers_never_change_and_updates_end(make_context: MakeContext) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    class Watched(type(Rigl().hold({}, 0))):  # type: ignore[misc]
        def after_step(self, step: int) -> None:
            super().after_step(step)
            seen.append({n: m.clone() for n, m in self.masks.items()})
            for name, weight in self.weights.items():
                assert not bool(weight.detach()[~self.masks[name]].any())

    model, context = network(), make_context()
    method = Rigl(sparsity=0.8, interval=3, alpha=0.5, end=0.6)
    found = method.sparsify(model, context).masks
    context.train(model, 3.0, Watched(found, method))  # 24 steps, updates at 3, 6, 9, 12
    moved = [i for i in range(1, 24) if any(not torch.equal(seen[i][n], seen[i - 1][n]) for n in found)]
    assert moved == [3, 6, 9, 12]
    assert all({n: int(m.sum()) for n, m in s.items()} == {n: int(m.sum()) for n, m in found.items()} for s in seen)


def test_depthwise_layers_and_with_uniform_the_first_stay_dense(make_context: MakeContext) -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(128, 4))
    assert list(maskable(model, skip_first=False)) == ["0.weight", "3.weight"]
    found = Rigl(distribution="uniform", sparsity=0.5).sparsify(model, make_context())
    assert list(found.masks) == ["3.weight"]
    assert found.notes == ("not masked and not counted in the sparsity: 0.weight, 1.weight",)
    assert isinstance(Rigl().hold(found.masks, 0), Hold)
    assert masks.count(found.masks) == 256
