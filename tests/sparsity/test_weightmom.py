"""WeightMom: the average, the ramp, what each layer loses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoprune import masks
from autoprune.masks import Masks
from autoprune.sparsity.weightmom import Weightmom, _Momentum, apportioned, removed

from .conftest import MakeContext, network


def started(method: Weightmom, weight: Tensor, steps: int) -> tuple[_Momentum, nn.Linear]:
    """Return the hook of a linear layer with this weight (1, n), before its first step."""
    model = nn.Linear(weight.shape[1], 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(weight)
    hook = _Momentum(masks.full(model), method)
    hook.begin(model, torch.optim.SGD(model.parameters(), lr=0.1), steps)
    return hook, model


def step(hook: _Momentum, model: nn.Linear, number: int, weight: list[float]) -> None:
    with torch.no_grad():
        model.weight.copy_(torch.tensor([weight]))
    hook.after_step(number)


def test_the_average_of_magnitudes_by_hand() -> None:
    hook, model = started(Weightmom(beta=0.9), torch.ones(1, 2), 1000)
    averages, corrected = [], []
    for i, value in enumerate((1.0, -0.5, 0.25)):
        step(hook, model, i, [value, value])
        averages.append(float(hook._average["weight"][0, 0]))
        corrected.append(averages[-1] / (1 - 0.9 ** (i + 1)))
    assert averages == pytest.approx([0.1, 0.14, 0.151])
    assert corrected == pytest.approx([1.0, 0.736842, 0.557196], abs=1e-6)


def test_averaging_the_weight_itself_penalises_changes_of_sign() -> None:
    hook, model = started(Weightmom(beta=0.9, source="signed"), torch.ones(1, 2), 1000)
    for i, value in enumerate((1.0, -1.0)):
        step(hook, model, i, [value, value])
    assert float(hook._average["weight"][0, 0]) == pytest.approx(0.1 * 0.9 - 0.1)


@pytest.mark.parametrize(("beta", "stays"), [(0.99, 0), (0.0, 1)])
def test_history_decides(beta: float, stays: int) -> None:
    """One weight was 1 for 100 steps and is now 0.1, the other always was 0.3."""
    method = Weightmom(sparsity=0.5, beta=beta, gamma=1.0, events=1, end=1.0, min_keep=0.0)
    hook, model = started(method, torch.ones(1, 2), 101)
    for i in range(101):
        step(hook, model, i, [1.0 if i < 100 else 0.1, 0.3])
    assert hook.masks["weight"][0].tolist() == [i == stays for i in range(2)]
    assert model.weight.detach()[0, 1 - stays] == 0


SCORES = {"a": torch.tensor([0.1, 0.2, 0.3, 0.4]), "b": torch.tensor([0.5, 0.6, 0.7, 0.8])}
ALL: Masks = {name: torch.ones(4, dtype=torch.bool) for name in SCORES}


@pytest.mark.parametrize(("gamma", "a", "b"), [(0.0, [0, 1, 1, 1], [0, 1, 1, 1]), (1.0, [0, 0, 1, 1], [1, 1, 1, 1])])
def test_what_each_layer_loses_by_hand(gamma: float, a: list[int], b: list[int]) -> None:
    found = removed(SCORES, SCORES, ALL, 2, gamma, 0.0)
    assert [found["a"].int().tolist(), found["b"].int().tolist()] == [a, b]


def test_ties_go_by_the_weight_itself_and_then_by_index() -> None:
    scores = {"a": torch.tensor([0.5, 0.5, 0.5, 0.5])}
    weights = {"a": torch.tensor([0.3, -0.1, 0.1, 0.2])}
    found = removed(scores, weights, {"a": torch.ones(4, dtype=torch.bool)}, 1, 1.0, 0.0)
    assert found["a"].int().tolist() == [1, 0, 1, 1]


def test_shares_are_rounded_by_largest_remainders_and_capped() -> None:
    assert apportioned([1.5, 1.5, 1.0], [9, 9, 9], [9, 9, 9], 4) == [2, 1, 1]
    assert apportioned([3.0, 0.6, 0.4], [9, 9, 9], [1, 9, 9], 4) == [1, 2, 1]
    # with all of its share in a full layer the rest goes by what is alive
    assert apportioned([4.0, 0.0, 0.0], [9, 6, 3], [1, 9, 9], 4) == [1, 2, 1]
    assert apportioned([2.0, 2.0], [2, 2], [1, 1], 4) == [1, 1]


def test_without_importance_every_layer_loses_its_share_to_within_one_weight() -> None:
    draws = torch.Generator().manual_seed(0)
    scores = {
        "a": torch.rand(50, generator=draws),
        "b": torch.rand(31, generator=draws),
        "c": torch.rand(7, generator=draws),
    }
    before: Masks = {n: torch.ones_like(s, dtype=torch.bool) for n, s in scores.items()}
    found = removed(scores, scores, before, 40, 0.0, 0.0)
    assert masks.size(found) - masks.count(found) == 40
    for mask in found.values():
        assert abs(int((~mask).sum()) - 40 * len(mask) / 88) < 1


def test_the_ramp_is_cubic_and_events_are_evenly_spaced() -> None:
    four = Weightmom(sparsity=0.8, events=4)
    assert [four.share_after(e) / 0.8 for e in (1, 2, 3, 4)] == pytest.approx([0.578125, 0.875, 0.984375, 1.0])
    assert Weightmom(events=6, begin=0.1, end=0.6).event_steps(100) == {10: 1, 20: 2, 30: 3, 40: 4, 50: 5, 60: 6}
    assert Weightmom(events=1, end=0.6).event_steps(10) == {6: 1}
    # where several events fall on one step, the last counts
    assert Weightmom(events=20).event_steps(4) == {1: 11, 2: 20}


def test_counts_are_exact_after_every_event_and_masks_nested(make_context: MakeContext, monkeypatch: Any) -> None:
    seen: list[Masks] = []
    remove = _Momentum._remove

    def watched(self: _Momentum, *given: Any) -> None:
        remove(self, *given)
        seen.append({name: mask.clone() for name, mask in self.masks.items()})

    monkeypatch.setattr(_Momentum, "_remove", watched)
    method = Weightmom(sparsity=0.9, epochs=5.0, events=4)
    found = method.sparsify(network(), make_context())
    total = masks.size(found.masks)
    assert [total - masks.count(m) for m in seen] == [round(0.9 * s * total) for s in (0.578125, 0.875, 0.984375, 1.0)]
    for before, after in zip(seen, seen[1:], strict=False):  # noqa: RUF007
        assert not any(bool((after[n] & ~before[n]).any()) for n in after)
    assert found.notes == ()


def test_without_memory_it_is_gradual_magnitude_pruning(make_context: MakeContext, monkeypatch: Any) -> None:
    remove, compared = _Momentum._remove, list[bool]()

    def watched(self: _Momentum, share: float, correction: float) -> None:
        scores = {name: weight.detach().abs() for name, weight in self.weights.items()}
        kept = masks.kept_of(masks.size(scores), share)
        expected = masks.keep_largest(scores, kept, {n: m.clone() for n, m in self.masks.items()})
        remove(self, share, correction)
        compared.append(all(torch.equal(self.masks[n], expected[n]) for n in expected))

    monkeypatch.setattr(_Momentum, "_remove", watched)
    Weightmom(sparsity=0.7, epochs=3.0, events=3, beta=0.0, gamma=1.0, min_keep=0.0).sparsify(network(), make_context())
    assert compared == [True] * 3


def test_what_no_layer_can_lose_is_told(make_context: MakeContext) -> None:
    found = Weightmom(sparsity=0.9, epochs=1.0, events=1, min_keep=0.5).sparsify(network(), make_context())
    assert masks.count(found.masks) == 752
    assert found.notes == ("min_keep holds 602 weights above the sparsity asked for",)
