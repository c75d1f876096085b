from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from autoprune.data import Data, DatasetSplit, DataSpec, TensorSplit, as_data, build_data
from autoprune.data.user import data_of
from autoprune.errors import BadData, BadInput, UnknownName

SPEC = DataSpec(name="my.data:make", validation_fraction=0.25)
PAIRS = TensorDataset(torch.arange(8.0)[:, None], torch.tensor([0, 1] * 4))


class Unlabelled(Dataset[tuple[dict[str, Tensor], Tensor]]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], Tensor]:
        if index >= 8:
            raise IndexError
        return {"x": torch.full((3,), float(index))}, torch.tensor([0.5])


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


def test_validation_is_split_off_train_by_class() -> None:
    data = data_of({"train": PAIRS, "test": PAIRS}, SPEC)
    assert isinstance(data.train, TensorSplit)
    assert (len(data.train), len(data.validation), len(data.test or ())) == (6, 2, 8)
    assert data.validation.labels().bincount().tolist() == [1, 1]  # type: ignore[union-attr]
    assert data.num_classes == 2


def test_given_splits_stay_as_they_are() -> None:
    data = data_of({"train": PAIRS, "validation": (torch.zeros(3, 1), torch.zeros(3)), "num_classes": 5}, SPEC)
    assert (len(data.train), len(data.validation), data.test, data.num_classes) == (8, 3, None, 5)


def test_any_map_style_data_set_with_dict_inputs_and_without_labels() -> None:
    data = data_of({"train": Unlabelled()}, SPEC)
    assert isinstance(data.train, DatasetSplit)
    assert (len(data.train), len(data.validation), data.num_classes) == (6, 2, None)
    assert data.example_inputs["x"].shape == (2, 3)


def test_the_fingerprint_tells_the_content() -> None:
    other = TensorDataset(torch.arange(8.0)[:, None] + 1, torch.tensor([0, 1] * 4))
    prints = [data_of({"train": part}, SPEC).fingerprint for part in (PAIRS, PAIRS, other)]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"train": PAIRS, "valid": PAIRS}, "has the keys valid"),
        ({"test": PAIRS}, "has no 'train'"),
        ({"train": Stream()}, "is a Stream, which has no length or no samples by number"),
        ({"train": 3}, "is a int, which has no length or no samples by number"),
        ({"train": PAIRS, "num_classes": "two"}, "must be a whole number from 1, got 'two'"),
        ({"train": PAIRS, "test": TensorDataset(torch.ones(0, 1), torch.ones(0))}, "test is empty"),
        ({"train": (torch.ones(1, 1), torch.ones(1))}, "too few samples to split off"),
    ],
)
def test_mistakes_are_told(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(BadData, match=message):
        data_of(parts, SPEC)


def test_functions_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_data.py").write_text(
        "import torch\nfrom autoprune.data import Data, TensorSplit\n"
        "def mapping(count):\n    return {'train': (torch.ones(count, 2), torch.arange(count) % 2)}\n"
        "def whole():\n    s = TensorSplit(torch.ones(4, 2), torch.arange(4))\n"
        "    return Data(s, s, None, 'own', 4, 'abc')\n"
        "def wrong():\n    return 3\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert len(build_data({"name": "my_data:mapping", "arguments": {"count": 20}}).train) == 18
    assert isinstance(build_data({"name": "my_data:whole"}), Data)
    with pytest.raises(BadData, match=r"returned a int\. Allowed: an autoprune"):
        build_data({"name": "my_data:wrong"})
    with pytest.raises(UnknownName, match=r"Did you mean 'my_data\.whole'"):
        build_data({"name": "my_data:wole"})
    with pytest.raises(BadInput, match="It takes: count"):
        build_data({"name": "my_data:mapping"})


def test_data_comes_in_three_forms() -> None:
    data = as_data({"train": PAIRS})
    assert as_data(data) is data
    assert as_data({"name": "digits"}).num_classes == 10
    with pytest.raises(BadData, match="data is a TensorDataset; give a Data"):
        as_data(PAIRS)  # type: ignore[arg-type]
