from __future__ import annotations

import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from autoprune.data import DatasetSplit, Split, TensorSplit, training_batches
from autoprune.data.split import isolated_random_state, labels_of, random_split, stratified_split
from autoprune.errors import BadData

N = 10


class Noisy(Dataset[tuple[Tensor, int]]):
    """Sample i is (i plus noise from all three global generators, i % 2)."""

    def __init__(self, noise: bool = False) -> None:
        self.noise, self.targets = noise, [i % 2 for i in range(N)]

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        extra = torch.rand(1) + random.random() + np.random.rand() if self.noise else torch.zeros(1)
        return index + extra.float(), self.targets[index]


def tensor_split() -> Split:
    return TensorSplit(torch.arange(float(N))[:, None], torch.arange(N) % 2)


def dataset_split() -> Split:
    return DatasetSplit(Noisy())


BOTH = pytest.mark.parametrize("make", [tensor_split, dataset_split])


def flat(batches: list[list[float]]) -> list[float]:
    return [value for batch in batches for value in batch]


def values(split: Split, batch_size: int = 4, **options: Any) -> list[list[float]]:
    return [inputs.flatten().tolist() for inputs, _ in split.batches(batch_size, **options)]


@BOTH
def test_without_a_seed_the_order_is_the_stored_one(make: Any) -> None:
    assert values(make()) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [t.tolist() for _, t in make().batches(5)] == [[0, 1, 0, 1, 0], [1, 0, 1, 0, 1]]


@BOTH
def test_a_seed_shuffles_repeatably(make: Any) -> None:
    once, again, other = (flat(values(make(), seed=seed)) for seed in (1, 1, 2))
    assert once == again != other
    assert sorted(once) == sorted(other) == list(range(N))


@BOTH
def test_a_limit_takes_nested_fixed_subsets_and_random_ones_with_a_seed(make: Any) -> None:
    three, six = (flat(values(make(), limit=limit)) for limit in (3, 6))
    assert six[:3] == three
    assert three != [0, 1, 2]
    assert flat(values(make(), limit=6)) == six
    subsets = [set(flat(values(make(), limit=5, seed=seed))) for seed in range(4)]
    assert all(len(subset) == 5 for subset in subsets)
    assert len({frozenset(subset) for subset in subsets}) > 1
    assert flat(values(make(), limit=99)) == list(range(N))
    assert values(make(), limit=0) == []


@BOTH
def test_subsets_and_labels_agree(make: Any) -> None:
    part = make().subset(torch.tensor([1, 4, 7])).subset(torch.tensor([0, 2]))
    assert values(part) == [[1, 7]]
    assert part.labels().tolist() == [1, 1]
    assert len(part) == 2


@BOTH
def test_splits_pickle(make: Any) -> None:
    assert values(pickle.loads(pickle.dumps(make()))) == values(make())  # noqa: S301


def test_random_transforms_are_repeatable_and_global_randomness_stays() -> None:
    split = DatasetSplit(Noisy(noise=True))
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    once, again, other = (values(split, seed=seed) for seed in (1, 1, 2))
    assert once == again != other
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]


def test_the_random_state_is_put_back_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError), isolated_random_state(3):
        torch.rand(2) @ torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_dict_and_tuple_inputs_of_tensors() -> None:
    two = {"ids": torch.arange(6), "mask": torch.ones(6, 2)}
    inputs, targets = next(TensorSplit(two, torch.arange(6)).batches(2, seed=0))
    assert torch.equal(inputs["ids"], targets)
    assert inputs["mask"].shape == (2, 2)
    inputs, _ = next(TensorSplit((torch.arange(6), torch.ones(6)), torch.arange(6)).batches(2))
    assert isinstance(inputs, tuple)


def test_dict_and_tuple_inputs_of_data_sets() -> None:
    dicts = [({"ids": torch.tensor([i])}, 0) for i in range(4)]
    tuples = [((torch.tensor([i]), torch.tensor([i])), 0) for i in range(4)]
    assert next(DatasetSplit(dicts).batches(2))[0]["ids"].tolist() == [[0], [1]]  # type: ignore[arg-type]
    assert isinstance(next(DatasetSplit(tuples).batches(2))[0], tuple)  # type: ignore[arg-type]


def test_samples_that_are_no_pairs_are_told() -> None:
    with pytest.raises(BadData, match=r"a sample of list is not a pair \(inputs, target\)"):
        next(DatasetSplit([torch.ones(3)] * 4).batches(2))  # type: ignore[arg-type]


def test_tensors_of_different_length_are_told() -> None:
    with pytest.raises(BadData, match=r"differ in their number of samples: \[3, 4\]"):
        TensorSplit(torch.ones(3, 1), torch.ones(4))


def test_augmentation_needs_a_seed() -> None:
    with pytest.raises(ValueError, match="drawn from a seed"):
        next(tensor_split().batches(2, augment=True))


@BOTH
def test_training_batches_draw_exactly_as_many_samples(make: Any) -> None:
    batches = [i.flatten().tolist() for i, _ in training_batches(make(), 4, 26, seed=0)]
    assert [len(batch) for batch in batches] == [4, 4, 4, 4, 4, 4, 2]
    drawn = flat(batches)
    assert sorted(drawn[:N]) == sorted(drawn[N : 2 * N]) == list(range(N))
    assert drawn[:N] != drawn[N : 2 * N]


@pytest.mark.parametrize(
    ("samples", "sizes"), [(2, [2]), (4, [4]), (5, [5]), (9, [4, 5]), (10, [4, 4, 2]), (13, [4, 4, 5])]
)
def test_no_training_batch_has_a_single_sample(samples: int, sizes: list[int]) -> None:
    assert [len(t) for _, t in training_batches(tensor_split(), 4, samples, seed=0)] == sizes


def test_training_batches_refuse_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="at least 2 samples"):
        training_batches(tensor_split(), 1, 10, seed=0)
    with pytest.raises(BadData, match="training split is empty"):
        training_batches(tensor_split().subset(torch.tensor([], dtype=torch.int64)), 4, 10, seed=0)


def test_stratified_splits_are_disjoint_complete_and_by_class() -> None:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 2 + [3])
    kept, held = stratified_split(labels, 0.2, seed=0)
    assert sorted(torch.cat([kept, held]).tolist()) == list(range(83))
    assert labels[held].bincount(minlength=4).tolist() == [10, 6, 1, 0]
    assert torch.equal(held, stratified_split(labels, 0.2, seed=0)[1])
    assert not torch.equal(held, stratified_split(labels, 0.2, seed=1)[1])


def test_random_splits_are_disjoint_and_complete() -> None:
    kept, held = random_split(20, 0.25, seed=0)
    assert sorted(torch.cat([kept, held]).tolist()) == list(range(20))
    assert len(held) == 5
    assert len(random_split(2, 0.9, seed=0)[0]) == 1


def test_labels_are_found_without_reading_samples() -> None:
    pairs = TensorDataset(torch.ones(3, 1), torch.tensor([4, 5, 6]))
    assert labels_of(pairs).tolist() == [4, 5, 6]  # type: ignore[union-attr]
    assert labels_of(Subset(pairs, [2, 0])).tolist() == [6, 4]  # type: ignore[union-attr]
    assert labels_of(Noisy()).tolist() == [0, 1] * 5  # type: ignore[union-attr]
    assert labels_of([1, 2]) is None
    assert labels_of(TensorDataset(torch.ones(3, 1), torch.ones(3))) is None
