"""Grow-and-prune: who is dense when, exact pruning, the merge of copies."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from autoprune import masks
from autoprune.masks import Hold, Masks
from autoprune.sparsity._densities import zeros
from autoprune.sparsity.grow_and_prune import GrowAndPrune, merge, partitioned

from .conftest import MakeContext, Trainer, network

ALL: dict[str, Any] = {"ends": "sparse", "sparsity": 0.8}


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(12, 12), nn.BatchNorm1d(12), nn.ReLU()) for _ in range(3)]
    return nn.Sequential(nn.Flatten(), nn.Linear(144, 12), *layers, nn.Linear(12, 4)).eval()


def test_parts_are_contiguous_and_of_about_equal_size() -> None:
    assert partitioned({"a": 10, "b": 10, "c": 10, "d": 10}, 2) == [["a", "b"], ["c", "d"]]
    assert partitioned({"a": 1, "b": 1, "c": 100, "d": 1}, 2) == [["a", "b"], ["c", "d"]]
    assert partitioned({"a": 100, "b": 1, "c": 1}, 3) == [["a"], ["b"], ["c"]]
    assert partitioned({"a": 5, "b": 5}, 9) == [["a"], ["b"]]


def test_in_every_step_exactly_one_part_is_dense(make_context: MakeContext) -> None:
    model, context = network(), make_context()
    found = GrowAndPrune(partitions=3, rounds=2, epochs=0.5, **ALL).sparsify(model, context)
    assert isinstance(context.train, Trainer)
    kept = {n: w.numel() - zeros(w.numel(), 0.8) for n, w in masks.prunable(model).items()}
    names = list(kept)
    assert [epochs for epochs, _ in context.train.calls] == [0.5] * 6
    for step, (_, masked) in enumerate(context.train.calls):
        dense = names[step % 3]
        counts = {n: int(m.sum()) for n, m in masked.items()}
        assert counts == kept | {dense: masked[dense].numel()}
    assert {n: int(m.sum()) for n, m in found.masks.items()} == kept


def test_a_mask_changes_only_when_its_own_step_begins_and_ends(make_context: MakeContext) -> None:
    context = make_context()
    found = GrowAndPrune(partitions=3, rounds=2, epochs=0.5, **ALL).sparsify(network(), context)
    assert isinstance(context.train, Trainer)
    seen = [m for _, m in context.train.calls] + [found.masks]
    for step in range(1, 7):
        for i, name in enumerate(found.masks):
            changed = not torch.equal(seen[step][name], seen[step - 1][name])
            assert changed == (i in ((step - 1) % 3, step % 3 if step < 6 else -1)), (step, name)


def test_growing_does_not_change_the_function(make_context: MakeContext) -> None:
    """What comes back is zero, so the model before a step is the model after the last one."""
    outputs: list[torch.Tensor] = []
    inputs = torch.randn(5, 4, 6, 6, generator=torch.Generator().manual_seed(1))

    class Watching(Trainer):
        def __call__(self, model: nn.Module, epochs: float, hook: Hold, *purpose: str | int) -> None:
            with torch.no_grad():
                outputs.append(model(inputs))
                hook_masks: Masks = hook.masks
                masks.zero(model, hook_masks)
                outputs.append(model(inputs))
            super().__call__(model, epochs, hook, *purpose)

    context = make_context()
    assert isinstance(context.train, Trainer)
    watching = Watching(context.train.split, context.task, 0)
    object.__setattr__(context, "train", watching)
    GrowAndPrune(partitions=2, rounds=1, epochs=0.5, **ALL).sparsify(network(), context)
    for before, after in zip(outputs[::2], outputs[1::2], strict=True):
        assert torch.equal(before, after)


def test_magnitude_pruning_is_exact_with_ties() -> None:
    assert masks.keep_largest_in(torch.tensor([0.5, 0.5, 0.1, 0.2]), 2).tolist() == [True, True, False, False]
    assert masks.keep_largest_in(torch.full((4,), 0.3), 2).tolist() == [True, True, False, False]


def test_the_ends_stay_dense_unless_asked(make_context: MakeContext) -> None:
    found = GrowAndPrune(sparsity=0.8, partitions=2, rounds=1, epochs=0.5).sparsify(network(), make_context())
    assert list(found.masks) == ["3.weight"]
    assert found.notes == ("not masked and not counted in the sparsity: 0.weight, 9.weight",)


def test_a_merge_takes_each_part_with_biases_and_norms_from_its_copy() -> None:
    model = chain()
    names = list(masks.prunable(model))
    parts = [names[:2], names[2:4], names[4:]]
    copies = [copy.deepcopy(model) for _ in parts]
    for value, worker in enumerate(copies, start=1):
        for tensor in worker.state_dict().values():
            tensor.fill_(value)
    merge(model, copies, parts)
    for name, tensor in model.state_dict().items():
        index = int(name.split(".")[0])  # 1, 2 | 3, 4 | 5
        assert bool((tensor == {1: 1, 2: 1, 3: 2, 4: 2, 5: 3}[index]).all()), name


def test_copies_train_with_their_own_part_dense_and_end_sparse(make_context: MakeContext) -> None:
    model, context = chain(), make_context()
    method = GrowAndPrune(mode="parallel", partitions=2, rounds=2, epochs=0.5, distribution="erk", **ALL)
    found = method.sparsify(model, context)
    assert isinstance(context.train, Trainer)
    parts = partitioned({n: w.numel() for n, w in masks.prunable(model).items()}, 2)
    for i, (_, masked) in enumerate(context.train.calls):
        dense = {n for n, m in masked.items() if bool(m.all())}
        assert set(parts[i % 2]) <= dense
    assert len(context.train.calls) == 4
    assert masks.size(found.masks) - masks.count(found.masks) == pytest.approx(0.8 * masks.size(found.masks), abs=5)
    state = dict(model.named_parameters())
    assert all(not bool(state[n].detach()[~m].any()) for n, m in found.masks.items())


def test_merging_untrained_copies_gives_the_model_back() -> None:
    model = chain()
    before = copy.deepcopy(model.state_dict())
    names = list(masks.prunable(model))
    merge(model, [copy.deepcopy(model) for _ in range(2)], [names[:3], names[3:]])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_one_part_is_training_everything_and_pruning_in_turns(make_context: MakeContext) -> None:
    model, same = network(), network()
    found = GrowAndPrune(partitions=1, rounds=2, epochs=0.5, **ALL).sparsify(model, make_context())
    context = make_context()
    for step in range(2):
        context.train(same, 0.5, Hold(masks.full(same)), "step", step)
        for name, weight in masks.prunable(same).items():
            kept = weight.numel() - zeros(weight.numel(), 0.8)
            masks.zero(same, {name: masks.keep_largest_in(weight.detach().abs(), kept)})
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    assert all(bool((w.detach() != 0).sum() <= found.masks[n].sum()) for n, w in masks.prunable(same).items())


def test_a_pattern_is_kept_to_by_random_and_by_pruned_masks(make_context: MakeContext) -> None:
    context = make_context()
    method = GrowAndPrune(sparsity=0.5, pattern="2_of_4", ends="sparse", partitions=2, rounds=1, epochs=0.25)
    found = method.sparsify(network(), context)
    assert isinstance(context.train, Trainer)
    random = {name: mask for name, mask in context.train.calls[0][1].items() if not bool(mask.all())}
    assert random
    for mask in (*random.values(), *found.masks.values()):
        assert bool((mask.movedim(1, -1).reshape(-1, 4).sum(dim=1) == 2).all())
