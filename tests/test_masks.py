"""The one mask mechanism: exact counts, and zeros that stay zeros."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoprune import masks
from autoprune.data import TensorSplit
from autoprune.fields import hyperparameters
from autoprune.masks import Hold, Masks
from autoprune.tasks import classification
from autoprune.training import StepHook, train
from autoprune.training_settings import TrainingSettings


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=1),
        nn.BatchNorm1d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 6),
        nn.ReLU(),
        nn.Linear(6, 2),
    )


def random_masks(model: nn.Module, share: float = 0.5) -> Masks:
    draws = torch.Generator().manual_seed(1)
    return {
        name: masks.keep_random(weight.shape, round(share * weight.numel()), draws)
        for name, weight in masks.prunable(model).items()
    }


def run(model: nn.Module, hook: Hold, **changes: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 2, 4, generator=generator)
    split = TensorSplit(inputs, (inputs[:, 0, 0] > 0).long())
    known = hyperparameters(TrainingSettings)
    settings = TrainingSettings(**({"batch_size": 8, "lr": 0.1} | {k: v for k, v in changes.items() if k in known}))
    rest: dict[str, Any] = {"task": classification(), "samples": 160, "seed": 0}
    rest |= {k: v for k, v in changes.items() if k not in known}
    train(model, split, settings, hook=hook, **rest)


def test_weights_of_convolutions_and_linear_layers_can_be_masked() -> None:
    assert list(masks.prunable(network())) == ["0.weight", "4.weight", "6.weight"]
    assert list(masks.prunable(nn.Linear(3, 2))) == ["weight"]
    assert masks.prunable(nn.BatchNorm1d(3)) == {}


def test_a_shared_weight_is_there_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert list(masks.prunable(model)) == ["0.weight"]


@pytest.mark.parametrize(
    ("total", "sparsity", "kept"), [(5, 0.9, 0), (15, 0.9, 2), (1263, 0.0, 1263), (1000, 0.933, 67), (6296, 0.8, 1259)]
)
def test_kept_counts_round_half_to_even(total: int, sparsity: float, kept: int) -> None:
    assert masks.kept_of(total, sparsity) == kept


def test_the_largest_of_all_layers_stay_and_of_equal_ones_the_first() -> None:
    scores = {"a": torch.tensor([1.0, 5.0, 5.0]), "b": torch.tensor([[5.0, 5.0], [0.0, 9.0]])}
    found = masks.keep_largest(scores, 4)
    assert found["a"].tolist() == [False, True, True]
    assert found["b"].tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize("kept", [3, 10, 57, 199, 200])
def test_counts_are_exact_with_tied_scores(kept: int) -> None:
    scores = {"a": torch.zeros(100), "b": torch.ones(10, 9), "c": torch.zeros(10)}
    found = masks.keep_largest(scores, kept)
    assert masks.count(found) == kept
    assert all(bool(mask.any()) for mask in found.values())


def test_an_empty_layer_gets_its_best_for_the_least_of_a_layer_that_holds_more() -> None:
    scores = {"a": torch.tensor([9.0, 8.0, 7.0]), "b": torch.tensor([1.0, 2.0]), "c": torch.tensor([7.5])}
    found = masks.keep_largest(scores, 3)
    assert [m.tolist() for m in found.values()] == [[True, False, False], [False, True], [True]]
    assert masks.count(masks.keep_largest(scores, 0)) == 3


def test_what_is_gone_is_no_candidate() -> None:
    among = {"a": torch.tensor([False, True, True]), "b": torch.tensor([True, True])}
    found = masks.keep_largest({"a": torch.tensor([9.0, 2.0, 1.0]), "b": torch.tensor([3.0, 0.0])}, 2, among)
    assert [m.tolist() for m in found.values()] == [[False, True, False], [True, False]]


def test_n_of_m_neighbouring_inputs_stay() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0, 8.0, 7.0, 6.0, 5.0], [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 2.0, 2.0]])
    expected = [[0, 0, 1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0, 1, 1]]
    assert masks.keep_n_of_m(weight, 2, 4).int().tolist() == expected
    # neighbours of a convolution are channels at one kernel position
    conv = torch.rand(3, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    found = masks.keep_n_of_m(conv, 2, 4)
    assert found.shape == conv.shape
    assert bool((found.view(3, 2, 4, 3, 3).sum(dim=2) == 2).all())
    largest = conv.view(3, 2, 4, 3, 3).topk(2, dim=2).values.sum()
    assert float((conv * found).sum()) == pytest.approx(float(largest))


def test_a_narrower_pattern_is_chosen_among_what_is_left() -> None:
    score = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    among = torch.tensor([[False, True, True, True]])
    assert masks.keep_n_of_m(score, 2, 4, among).int().tolist() == [[0, 1, 1, 0]]
    assert masks.keep_n_of_m(score, 2, 4, torch.tensor([[False, False, False, True]])).int().tolist() == [[0, 0, 0, 1]]


class _Watched(Hold):
    """Looks at everything that has to be zero, after every step."""

    def after_step(self, step: int) -> None:
        super().after_step(step)
        self.check()

    def check(self) -> None:
        assert self._optimizer is not None
        for name, weight in self.weights.items():
            gone = ~self.masks[name]
            assert not bool(weight.detach()[gone].any())
            assert weight.grad is None or not bool(weight.grad[gone].any())
            for value in self._optimizer.state[weight].values():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    assert not bool(value[gone].any())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("mixed_precision", [False, True])
def test_masked_weights_and_their_state_are_exact_zeros_after_every_step(optimizer: str, mixed_precision: bool) -> None:
    model, hook = network(), _Watched(random_masks(network()))
    before = {name: weight.detach().clone() for name, weight in masks.prunable(model).items()}
    run(model, hook, optimizer=optimizer, lr=0.01, momentum=0.9, weight_decay=0.05, mixed_precision=mixed_precision)
    hook.check()
    for name, weight in masks.prunable(model).items():
        kept = hook.masks[name]
        assert bool((weight.detach()[kept] != before[name][kept]).any())
        assert torch.equal(weight.detach() != 0, kept)
        assert weight.dtype == torch.float32


def test_masked_gradients_do_not_count_for_clipping() -> None:
    """Two equal gradients, one of them masked: the other has the whole of the allowed norm."""
    model = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.weight)
    hook = Hold({"weight": torch.tensor([[True, False]])})
    settings = {"momentum": 0.0, "weight_decay": 0.0, "samples": 8, "lr": 1.0, "schedule": "constant"}
    run(model, hook, loss=lambda m, i, t: 100.0 * m.weight.sum(), clip_norm=0.5, **settings)
    assert model.weight.detach().tolist() == [pytest.approx([-0.5, 0.0], rel=1e-4)]


def test_what_comes_back_starts_at_zero_without_momentum() -> None:
    model = nn.Linear(4, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    hook = Hold({"weight": torch.tensor([[True, True, False, False]])})
    hook.begin(model, optimizer, 10)
    model.weight.sum().backward()
    optimizer.step()  # unmasked on purpose: momentum everywhere
    hook.mask_weights()
    optimizer.state[model.weight]["momentum_buffer"].fill_(1.0)
    hook.set_mask("weight", torch.tensor([[True, False, True, False]]))
    assert optimizer.state[model.weight]["momentum_buffer"].tolist() == [[1.0, 0.0, 0.0, 0.0]]
    assert model.weight.detach()[0, 1:].tolist() == [0.0, 0.0, 0.0]
    assert float(model.weight.detach()[0, 0]) != 0


class _Counting(StepHook):
    def __init__(self, skip: int) -> None:
        self.skip, self.seen = skip, list[str]()

    def begin(self, model: nn.Module, optimizer: Any, steps: int) -> None:
        self.seen.append(f"begin {steps}")

    def before_step(self, step: int) -> bool:
        self.seen.append(f"before {step}")
        return step == self.skip

    def after_step(self, step: int) -> None:
        self.seen.append(f"after {step}")


@pytest.mark.parametrize(("samples", "steps"), [(16, 2), (17, 2), (18, 3), (7, 1)])
def test_a_hook_sees_every_step_and_is_told_how_many(samples: int, steps: int) -> None:
    hook: Any = _Counting(-1)
    run(network(), hook, samples=samples)
    assert hook.seen[0] == f"begin {steps}"
    assert hook.seen[1:] == [f"{when} {step}" for step in range(steps) for when in ("before", "after")]


def test_a_hook_can_take_the_place_of_the_optimisers_step() -> None:
    model = network()
    before = copy.deepcopy([p.detach().clone() for p in model.parameters()])
    hook: Any = _Counting(0)
    run(model, hook, samples=8)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.fixture
def process_group() -> Iterator[None]:
    import torch.distributed as dist

    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_model_under_data_parallelism_has_the_same_masks(process_group: None) -> None:
    from torch.nn.parallel import DistributedDataParallel

    plain, wrapped = network(), network()
    run(plain, Hold(random_masks(plain)))
    hook = _Watched(random_masks(wrapped))
    run(DistributedDataParallel(wrapped), hook)
    hook.check()
    for a, b in zip(plain.parameters(), wrapped.parameters(), strict=True):
        torch.testing.assert_close(a, b)
        assert torch.equal(a == 0, b == 0)
