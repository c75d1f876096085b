from __future__ import annotations

import torch

from autoprune.data import Data, build_data


def pictures(data: Data) -> list[set[tuple[float, ...]]]:
    parts = (data.train, data.validation, data.test)
    return [{tuple(i.flatten().tolist()) for x, _ in p.batches(500) for i in x} for p in parts if p is not None]


def test_sizes_and_ranges_are_as_documented() -> None:
    data = build_data({"name": "digits", "validation_fraction": 0.2})
    assert data.test is not None
    assert [len(part) for part in (data.train, data.validation, data.test)] == [1151, 287, 359]
    assert data.num_classes == 10
    assert data.example_inputs.shape == (2, 1, 8, 8)
    inputs, targets = next(data.train.batches(2000))
    assert (float(inputs.min()), float(inputs.max())) == (0.0, 1.0)
    assert (inputs.dtype, targets.dtype) == (torch.float32, torch.int64)


def test_splits_are_disjoint_and_stratified() -> None:
    data = build_data({"name": "digits"})
    train, validation, test = pictures(data)
    assert not train & validation
    assert not (train | validation) & test
    counts = data.validation.labels().bincount()  # type: ignore[union-attr]
    assert int(counts.max() - counts.min()) <= 1


def test_the_test_split_never_changes_and_the_fingerprint_tells_the_split() -> None:
    one, other = build_data({"name": "digits"}), build_data({"name": "digits", "seed": 1})
    assert pictures(one)[2] == pictures(other)[2]
    assert pictures(one)[1] != pictures(other)[1]
    assert one.fingerprint == build_data({"name": "digits"}).fingerprint != other.fingerprint
