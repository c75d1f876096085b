from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from autoprune.data import build_data, known_data
from autoprune.errors import BadData, BadInput, UnknownName

FAKE = {"name": "FakeData", "arguments": {"size": 40, "image_size": [3, 8, 8], "num_classes": 4}}


@pytest.mark.parametrize("mode", ["memory", "none"])
def test_fake_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setenv("AUTOPRUNE_CACHE", str(tmp_path))
    data = build_data({**FAKE, "cache": mode, "mean": [0.5] * 3, "std": [0.5] * 3})
    assert data.num_classes == 4
    assert len(data.train) + len(data.validation) == len(data.test or ()) == 40
    assert data.example_inputs.shape == (2, 3, 8, 8)
    assert data.fingerprint == build_data({**FAKE, "cache": mode, "mean": [0.5] * 3, "std": [0.5] * 3}).fingerprint
    assert data.test is not None
    assert not torch.equal(next(data.train.batches(2))[0], next(data.test.batches(2))[0])


@pytest.mark.parametrize("name", ["CIFAR10", "SVHN", "Flowers102"])
def test_missing_files_are_told_with_the_way_to_fetch_them(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadData, match=rf"data '{name}' cannot be opened in .*Set data\.download to true"):
        build_data({"name": name, "root": str(tmp_path)})


def test_a_missing_root_is_told() -> None:
    with pytest.raises(BadData, match="data 'MNIST' needs root"):
        build_data({"name": "MNIST"})


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"no data set named 'CIFAR01'\. Did you mean 'CIFAR10"):
        build_data({"name": "CIFAR01"})
    assert {"digits", "image_folder", "FakeData"} <= set(known_data())


def test_wrong_arguments_are_told() -> None:
    wrong: dict[str, Any] = {"name": "FakeData", "arguments": {"sise": 3}}
    with pytest.raises(BadInput, match="unexpected keyword argument 'sise'"):
        build_data(wrong)


def test_every_name_is_a_data_set_of_torchvision() -> None:
    import torchvision

    assert all(hasattr(torchvision.datasets, name) for name in known_data()[2:])


def test_mnist_from_its_files(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 20), ("t10k", 10)):
        header = (2051).to_bytes(4, "big") + count.to_bytes(4, "big") + 2 * (28).to_bytes(4, "big")
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + bytes(range(count)) * 784)
        labels = (2049).to_bytes(4, "big") + count.to_bytes(4, "big") + bytes(i % 10 for i in range(count))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    data = build_data({"name": "MNIST", "root": str(tmp_path), "validation_fraction": 0.5})
    assert (len(data.train), len(data.validation), len(data.test or ())) == (10, 10, 10)
    assert data.example_inputs.shape == (2, 1, 28, 28)
    assert data.num_classes == 10
