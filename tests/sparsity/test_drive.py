"""DRIVE: its three terms by hand, nested rounds, and what it becomes at its limits."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoprune import masks
from autoprune.masks import Masks
from autoprune.sparsity.drive import Drive
from autoprune.sparsity.snip import Snip
from autoprune.tasks import Task

from .conftest import MakeContext, network
from .test_snip import half_square, linear, task_of


def test_three_terms_by_hand() -> None:
    weight, gradient = torch.tensor([1.0, -2.0, 0.5, 3.0]), torch.tensor([2.0, 1.0, 4.0, 0.0])
    alive = {"w": torch.ones(4, dtype=torch.bool)}
    found = Drive().scores({"w": weight}, {"w": gradient}, alive)["w"]
    assert found.tolist() == pytest.approx([0.772894, 0.783883, 0.981685, 0.461538], abs=1e-6)
    only = Drive(magnitude=0.0, convergence=0.0).scores({"w": weight}, {"w": gradient}, alive)["w"]
    assert only.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0.0])


def test_what_is_gone_counts_in_no_sum_and_scores_zero() -> None:
    alive = {"w": torch.tensor([True, False, True])}
    found = Drive(connection=0.0, convergence=0.0).scores(
        {"w": torch.tensor([1.0, 5.0, 3.0])}, {"w": torch.ones(3)}, alive
    )
    assert found["w"].tolist() == [0.25, 0.0, 0.75]


def test_a_term_without_sum_counts_nothing() -> None:
    alive = {"w": torch.ones(2, dtype=torch.bool)}
    found = Drive().scores({"w": torch.tensor([1.0, 3.0])}, {"w": torch.zeros(2)}, alive)
    assert found["w"].tolist() == [0.25, 0.75]


def test_one_round_by_connection_alone_is_snip(make_context: MakeContext) -> None:
    settings: dict[str, Any] = {"sparsity": 0.9, "batches": 2, "batch_size": 16}
    only = Drive(magnitude=0.0, convergence=0.0, rounds=1, warmup_epochs=0.0, **settings)
    a, b = only.sparsify(network(), make_context()), Snip(**settings).sparsify(network(), make_context())
    assert all(torch.equal(a.masks[n], b.masks[n]) for n in b.masks)


def test_one_round_by_magnitude_alone_is_magnitude_of_the_warmed_up_network(make_context: MakeContext) -> None:
    model, same = network(), network()
    method = Drive(sparsity=0.8, connection=0.0, convergence=0.0, rounds=1, warmup_epochs=1.0)
    found = method.sparsify(model, make_context()).masks
    make_context().train(same, 1.0, masks.Hold(masks.full(same)), "warm-up")
    expected = masks.keep_largest({n: w.detach().abs() for n, w in masks.prunable(same).items()}, round(0.2 * 1504))
    assert all(torch.equal(found[n], expected[n]) for n in found)


def test_rounds_are_nested_and_exact(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Masks] = []
    select = Drive.select

    def watched(self: Drive, *given: Any, **named: Any) -> Masks:
        seen.append(select(self, *given, **named))
        return seen[-1]

    monkeypatch.setattr(Drive, "select", watched)
    Drive(sparsity=0.9, rounds=5, warmup_epochs=0.0, batches=1).sparsify(network(), make_context())
    shares = [0.369043, 0.601893, 0.748811, 0.841511, 0.9]
    assert [masks.count(m) for m in seen] == [round((1 - s) * 1504) for s in shares]
    for before, after in pairwise(seen):
        assert not any(bool((after[n] & ~before[n]).any()) for n in after)


def two_layers() -> nn.Module:
    return nn.Sequential(linear([1.0, 0.0], [0.0, 0.2]), nn.ReLU(), linear([0.3, 1.0], [-0.25, 0.0]))


@pytest.mark.parametrize(
    ("rounds", "first", "second"),
    [(1, [[0, 0], [0, 1]], [[1, 0], [0, 0]]), (2, [[0, 0], [0, 1]], [[0, 1], [0, 0]])],
)
def test_scoring_anew_finds_what_became_useless(
    rounds: int, first: list[list[int]], second: list[list[int]], make_context: MakeContext
) -> None:
    """In the first round W1[0, 0] goes; after it the gradients of W2[:, 0] are zero, and a second round drops them."""
    summed = task_of(lambda output, targets: output.sum(dim=1).mean())
    context = make_context(torch.ones(2, 2), torch.zeros(2), task=summed)
    model = two_layers()
    settings: dict[str, Any] = {"warmup_epochs": 0.0, "batches": 1, "batch_size": 2}
    found = Drive(sparsity=0.75, magnitude=0.0, convergence=0.0, rounds=rounds, **settings).sparsify(model, context)
    assert found.masks["0.weight"].int().tolist() == first
    assert found.masks["2.weight"].int().tolist() == second


def test_the_scale_of_the_loss_and_the_statistics_of_norms_do_not_matter(make_context: MakeContext) -> None:
    def scaled(factor: float) -> Task:
        return task_of(lambda output, targets: factor * nn.functional.cross_entropy(output, targets))

    models = [network(), network()]
    before = {name: value.clone() for name, value in models[0].named_buffers()}
    found = [
        Drive(warmup_epochs=0.0, rounds=2, batches=2).sparsify(m, make_context(task=scaled(f))).masks
        for m, f in zip(models, (1.0, 1000.0), strict=True)
    ]
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])
    assert all(torch.equal(value, before[name]) for name, value in models[0].named_buffers())


def test_rewinding_takes_the_values_from_before_the_warm_up(make_context: MakeContext) -> None:
    model, fresh = network(), network()
    found = Drive(rewind="init", warmup_epochs=1.0, rounds=2, batches=1).sparsify(model, make_context()).masks
    state: dict[str, Tensor] = dict(fresh.named_parameters()) | dict(fresh.named_buffers())
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        expected = state[name].detach() * found[name] if name in found else state[name]
        assert torch.equal(value.detach(), expected.detach())


def test_the_loss_of_one_sample_is_looked_at_as_it_is(make_context: MakeContext) -> None:
    context = make_context(torch.tensor([[2.0, 1, 4, 0]] * 2), torch.zeros(2), task=task_of(half_square))
    model = nn.Sequential(linear([1.0, -2.0, 0.5, 3.0]))
    found = Drive(sparsity=0.75, rounds=1, warmup_epochs=0.0, batch_size=2).sparsify(model, context)
    assert found.masks["0.weight"].int().tolist() == [[0, 0, 1, 0]]
