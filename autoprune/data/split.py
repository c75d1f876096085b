"""Splits of a data set, and the batches drawn from them.

A batch is (inputs, targets). Inputs are a tensor, a tuple (positional arguments of the model) or a dict
(keyword arguments); the first axis of every tensor counts samples. Nothing here assumes images.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from autoprune.errors import BadData
from autoprune.seeds import derive_seed

if TYPE_CHECKING:
    from autoprune.data.images import Pixels

Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
Batch = tuple[Any, Any]
# From the stored inputs of a batch to what the model takes; a generator asks for augmentation drawn from it.
Prepare = Callable[[Tensor, torch.Generator | None], Tensor]

_SUBSET_SEED = 0  # of the fixed permutation behind `limit` without a seed


class Split(ABC):
    """Samples that can be drawn in batches, repeatably."""

    @abstractmethod
    def __len__(self) -> int:
        """Return how many samples there are."""

    @abstractmethod
    def labels(self) -> Tensor | None:
        """Return the class of every sample, (N,) int64, or None where only reading all would tell."""

    @abstractmethod
    def subset(self, indices: Tensor) -> Split:
        """Return the split of these samples, (M,) int64; nothing is copied but the indices."""

    @abstractmethod
    def gather(
        self,
        index_batches: Iterable[Tensor],
        *,
        seed: int | None = None,
        augment: bool = False,
        device: torch.device | str | None = None,
    ) -> Iterator[Batch]:
        """Yield one batch for each tensor of indices. No global random state is touched."""

    def batches(
        self,
        batch_size: int,
        *,
        seed: int | None = None,
        limit: int | None = None,
        augment: bool = False,
        device: torch.device | str | None = None,
    ) -> Iterator[Batch]:
        """Yield one pass in batches; the last may be smaller.

        seed: None keeps the stored order (often sorted by class: statistics of batches want a seed),
        an int shuffles, and augmentation is drawn from it too. The same seed gives the same batches.
        limit: at most that many samples. With a seed they are a random subset, another for each seed; without
        one they are the first of a fixed permutation, which mixes the classes: a smaller limit is a part of a
        larger one.
        augment: as training does, where the split has an augmentation; needs a seed.
        """
        count = len(self) if limit is None else min(limit, len(self))
        if seed is not None:
            order = torch.randperm(len(self), generator=_generator(seed, "order"))
        elif count < len(self):
            order = torch.randperm(len(self), generator=_generator(_SUBSET_SEED, "subset"))
        else:
            order = torch.arange(len(self))
        chunks = torch.split(order[:count], batch_size) if count else ()
        return self.gather(chunks, seed=seed, augment=augment, device=device)

    def one_sample(self, device: torch.device | str | None = None) -> Inputs:
        """Return the inputs of a batch of one, always of the same sample: what costs are counted with."""
        inputs: Inputs = next(self.batches(1, limit=1, device=device))[0]
        return inputs


class TensorSplit(Split):
    """Samples held in tensors, (N, ...) each; a memory map serves as well.

    indices: the samples of this split, (M,), or None for all.
    prepare: see `Prepare`; only for inputs that are a single tensor.
    """

    def __init__(
        self,
        inputs: Inputs,
        targets: Tensor,
        *,
        indices: Tensor | None = None,
        prepare: Prepare | None = None,
    ) -> None:
        lengths = {len(t) for t in _tensors(inputs)} | {len(targets)}
        if len(lengths) != 1:
            raise BadData(f"inputs and targets differ in their number of samples: {sorted(lengths)}.")
        if prepare is not None and not isinstance(inputs, Tensor):
            raise BadData("only inputs that are one tensor can be prepared as images.")
        self._inputs, self._targets, self._prepare = inputs, targets, prepare
        self._indices = torch.arange(len(targets)) if indices is None else indices

    def __len__(self) -> int:
        return len(self._indices)

    def labels(self) -> Tensor | None:
        """Return the targets when they are whole numbers, one per sample."""
        if self._targets.ndim != 1 or self._targets.is_floating_point():
            return None
        return self._targets[self._indices].long()

    def subset(self, indices: Tensor) -> TensorSplit:
        """Return a view of these samples."""
        chosen = self._indices[indices]
        return TensorSplit(self._inputs, self._targets, indices=chosen, prepare=self._prepare)

    def gather(
        self,
        index_batches: Iterable[Tensor],
        *,
        seed: int | None = None,
        augment: bool = False,
        device: torch.device | str | None = None,
    ) -> Iterator[Batch]:
        """Yield batches by indexing the tensors."""
        draws = _augmentation_generator(seed, augment)
        for index in index_batches:
            rows = self._indices[index]
            inputs = map_tensors(self._inputs, partial(_take, rows=rows, device=device))
            if self._prepare is not None:
                inputs = self._prepare(inputs, draws)
            yield inputs, self._targets[rows].to(device, non_blocking=True)


class DatasetSplit(Split):
    """Samples of a map-style torch data set, each (inputs, target), read through a DataLoader.

    Random transforms of the data set are repeatable: its calls see random states seeded from `seed`.
    workers: processes that read; 0 reads in this one. collate: None for torch's default.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        prepare: Prepare | None = None,
        workers: int = 0,
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        self._dataset, self._prepare, self._workers, self._collate = dataset, prepare, workers, collate

    def __len__(self) -> int:
        return len(cast(Sized, self._dataset))

    def labels(self) -> Tensor | None:
        """Return the labels where the data set offers them as `targets` or `labels`."""
        return labels_of(self._dataset)

    def subset(self, indices: Tensor) -> DatasetSplit:
        """Return a view of these samples."""
        part: Dataset[Any] = Subset(self._dataset, indices.tolist())
        return DatasetSplit(part, prepare=self._prepare, workers=self._workers, collate=self._collate)

    def gather(
        self,
        index_batches: Iterable[Tensor],
        *,
        seed: int | None = None,
        augment: bool = False,
        device: torch.device | str | None = None,
    ) -> Iterator[Batch]:
        """Yield batches by reading the samples one by one."""
        draws = _augmentation_generator(seed, augment)
        loader = DataLoader(
            self._dataset,
            batch_sampler=_IndexLists(index_batches),
            num_workers=self._workers,
            collate_fn=self._collate,
            generator=_generator(seed or 0, "workers"),
        )
        for inputs, targets in self._read(iter(loader), seed or 0):
            moved = map_tensors(_as_arguments(inputs), lambda t: t.to(device, non_blocking=True))
            if self._prepare is not None:
                moved = self._prepare(moved, draws)
            yield moved, map_tensors(targets, lambda t: t.to(device, non_blocking=True))

    def _read(self, batches: Iterator[Any], seed: int) -> Iterator[Batch]:
        step = 0
        while True:
            with isolated_random_state(derive_seed(seed, "read", step)):
                batch = next(batches, None)
            if batch is None:
                return
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise BadData(
                    f"a sample of {type(self._dataset).__name__} is not a pair (inputs, target); "
                    "several inputs go into a tuple or a dict in the first place."
                )
            yield batch[0], batch[1]
            step += 1


class _IndexLists:
    """Batches of indices as the lists of ints that a DataLoader hands to its data set."""

    def __init__(self, index_batches: Iterable[Tensor]) -> None:
        self._index_batches = index_batches

    def __iter__(self) -> Iterator[list[int]]:
        return (index.tolist() for index in self._index_batches)


@dataclass(frozen=True)
class Data:
    """The splits of one data set. The search sees train and validation; test is for the reported front.

    pixels: how inputs that are images were normalised, None where that is not known.
    """

    train: Split
    validation: Split
    test: Split | None
    name: str
    num_classes: int | None
    fingerprint: str  # of the content and of the way it is split
    pixels: Pixels | None = None

    @property
    def example_inputs(self) -> Any:
        """The inputs of two samples, as the model takes them."""
        return next(self.train.batches(2))[0]


def training_batches(
    split: Split,
    batch_size: int,
    samples: int,
    seed: int,
    *,
    augment: bool = True,
    device: torch.device | str | None = None,
) -> Iterator[Batch]:
    """Yield shuffled batches, pass after pass, until exactly `samples` samples were drawn.

    A batch may reach over the end of a pass, so only the last can be smaller. A remainder of one sample joins
    the batch before it, because batch norm cannot train on one. Raises BadData for an empty split.
    """
    if batch_size < 2 or samples < 2:
        raise ValueError(f"training needs at least 2 samples in a batch and in all, got {batch_size} and {samples}")
    if len(split) == 0:
        raise BadData("the training split is empty.")
    return split.gather(
        _index_batches(len(split), batch_size, samples, seed), seed=seed, augment=augment, device=device
    )


def _index_batches(length: int, batch_size: int, samples: int, seed: int) -> Iterator[Tensor]:
    pending, drawn, passes = torch.empty(0, dtype=torch.int64), 0, 0
    while drawn < samples:
        size = min(batch_size, samples - drawn)
        size += samples - drawn - size == 1
        while len(pending) < size:
            order = torch.randperm(length, generator=_generator(seed, "pass", passes))
            pending, passes = torch.cat([pending, order]), passes + 1
        yield pending[:size]
        pending, drawn = pending[size:], drawn + size


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return (kept, held out) indices, both ascending; of each class the given fraction is held out.

    labels (N,) int. At least one sample of each class stays, and one is held out where a class has two.
    """
    generator = _generator(seed, "stratified")
    held = []
    for label in torch.unique(labels).tolist():
        members = (labels == label).nonzero().flatten()
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return _complement(torch.cat(held), len(labels))


def random_split(length: int, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return (kept, held out) indices, both ascending, where no labels are known."""
    count = min(max(1, round(fraction * length)), length - 1)
    return _complement(torch.randperm(length, generator=_generator(seed, "random"))[:count], length)


def _complement(held: Tensor, length: int) -> tuple[Tensor, Tensor]:
    is_held = torch.zeros(length, dtype=torch.bool)
    is_held[held] = True
    return (~is_held).nonzero().flatten(), is_held.nonzero().flatten()


def labels_of(dataset: Any) -> Tensor | None:
    """Return the class of every sample of a torch data set, (N,) int64, or None where it cannot tell."""
    if isinstance(dataset, Subset):
        inner = labels_of(dataset.dataset)
        return None if inner is None else inner[torch.as_tensor(list(dataset.indices))]
    if isinstance(dataset, TensorDataset):
        found: Any = dataset.tensors[-1]
    else:
        found = getattr(dataset, "targets", None)
        found = getattr(dataset, "labels", None) if found is None else found
    if not isinstance(found, Tensor | np.ndarray | list) or len(found) != len(dataset):
        return None
    array = np.asarray(found)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        return None
    return torch.from_numpy(array.astype(np.int64))


def map_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Apply a function to every tensor of a tensor, tuple, list or dict; anything else stays as it is."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: map_tensors(item, function) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(map_tensors(item, function) for item in value)
    return value


@contextmanager
def isolated_random_state(seed: int) -> Iterator[None]:
    """Seed the global random states of torch (CPU), numpy and Python for a while, then put them back."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _take(tensor: Tensor, rows: Tensor, device: torch.device | str | None) -> Tensor:
    return tensor[rows].to(device, non_blocking=True)


def _as_arguments(inputs: Any) -> Any:
    # torch's default collate turns a tuple of inputs into a list
    return tuple(inputs) if isinstance(inputs, list) else inputs


def _tensors(inputs: Inputs) -> list[Tensor]:
    if isinstance(inputs, Tensor):
        return [inputs]
    return list(inputs.values() if isinstance(inputs, dict) else inputs)


def _generator(seed: int, *purpose: str | int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))


def _augmentation_generator(seed: int | None, augment: bool) -> torch.Generator | None:
    if not augment:
        return None
    if seed is None:
        raise ValueError("augmentation is drawn from a seed; give one")
    return _generator(seed, "augment")
