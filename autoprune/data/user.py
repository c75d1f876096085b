"""Data from a user's function: our Data, or a mapping of splits to torch data sets, tensors or Splits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from autoprune.data.fingerprint import fingerprint_of
from autoprune.data.split import (
    Data,
    DatasetSplit,
    Split,
    TensorSplit,
    map_tensors,
    random_split,
    stratified_split,
)
from autoprune.errors import BadData
from autoprune.imports import call, resolve
from autoprune.specs import DataSpec

_KEYS = ("train", "validation", "test", "num_classes")
_ALLOWED = (
    "Allowed: an autoprune.data.Data; or a mapping with 'train', and if wanted 'validation', 'test', "
    "'num_classes'. A split is a map-style torch data set, a pair of tensors (inputs, targets), or an "
    "autoprune.data.Split."
)
_READ_WHOLE = 16


def build_user_data(spec: DataSpec) -> Data:
    """Call `package.module:function(**arguments)` and return what it gives as Data. Raises BadInput."""
    found = call(resolve(spec.name, "data"), spec.arguments, f"data {spec.name!r}")
    if isinstance(found, Data):
        return found
    if not isinstance(found, Mapping):
        raise BadData(f"data {spec.name!r} returned a {type(found).__name__}. {_ALLOWED}")
    return data_of(found, spec)


def data_of(parts: Mapping[str, Any], spec: DataSpec) -> Data:
    """Return a mapping of splits as Data; without 'validation' a part of 'train' is split off."""
    strange = sorted(str(key) for key in parts if key not in _KEYS)
    if strange or parts.get("train") is None:
        problem = f"has the keys {', '.join(strange)}" if strange else "has no 'train'"
        raise BadData(f"the mapping of data {spec.name!r} {problem}. {_ALLOWED}")
    splits = {key: _split(parts[key], f"data {spec.name!r}: {key}", spec) for key in _given_splits(parts)}
    train = splits["train"]
    if "validation" not in splits:
        kept, held = _held_out(train, spec)
        splits |= {"train": train.subset(kept), "validation": train.subset(held)}
    return Data(
        train=splits["train"],
        validation=splits["validation"],
        test=splits.get("test"),
        name=spec.name,
        num_classes=_num_classes(parts.get("num_classes"), train, spec),
        fingerprint=fingerprint_of(spec.name, *(_content(part) for part in splits.values())),
    )


def _given_splits(parts: Mapping[str, Any]) -> list[str]:
    return [key for key in ("train", "validation", "test") if parts.get(key) is not None]


def _split(part: Any, where: str, spec: DataSpec) -> Split:
    split = _as_split(part, where, spec)
    if len(split) == 0:
        raise BadData(f"{where} is empty.")
    return split


def _as_split(part: Any, where: str, spec: DataSpec) -> Split:
    if isinstance(part, Split):
        return part
    if isinstance(part, TensorDataset) and len(part.tensors) == 2:
        return TensorSplit(part.tensors[0], part.tensors[1])
    if isinstance(part, tuple) and len(part) == 2 and isinstance(part[1], Tensor):
        return TensorSplit(part[0], part[1])
    is_map_style = hasattr(part, "__getitem__") and hasattr(part, "__len__")
    if isinstance(part, IterableDataset) or not is_map_style or isinstance(part, Mapping | str | Tensor):
        raise BadData(f"{where} is a {type(part).__name__}, which has no length or no samples by number. {_ALLOWED}")
    dataset: Dataset[Any] = part
    return DatasetSplit(dataset, workers=spec.workers)


def _held_out(train: Split, spec: DataSpec) -> tuple[Tensor, Tensor]:
    if len(train) < 2:
        raise BadData(f"data {spec.name!r} has too few samples to split off a validation part: {len(train)}.")
    labels = train.labels()
    if labels is not None:
        kept, held = stratified_split(labels, spec.validation_fraction, spec.seed)
        if len(held):
            return kept, held
    return random_split(len(train), spec.validation_fraction, spec.seed)


def _num_classes(given: Any, train: Split, spec: DataSpec) -> int | None:
    if given is not None:
        if not isinstance(given, int) or isinstance(given, bool) or given < 1:
            raise BadData(f"num_classes of data {spec.name!r} must be a whole number from 1, got {given!r}.")
        return given
    labels = train.labels()
    return None if labels is None else int(labels.max()) + 1


def _content(split: Split) -> str:
    some = torch.linspace(0, len(split) - 1, min(len(split), _READ_WHOLE)).round().long()
    tensors: list[Tensor] = []
    for inputs, targets in split.gather([some]):
        map_tensors((inputs, targets), lambda t: tensors.append(t if t.ndim else t[None]))
    return fingerprint_of(len(split), split.labels(), *tensors)
