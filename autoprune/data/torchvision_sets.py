"""Data sets of torchvision by name: those that label whole images, in a train and a test part."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from PIL import Image

from autoprune.data.cache import Progress
from autoprune.data.fingerprint import fingerprint_of
from autoprune.data.image_sets import ImageSet, image_data, to_tensor
from autoprune.data.split import Data, labels_of
from autoprune.errors import AutopruneError, BadData, unknown_name
from autoprune.imports import call
from autoprune.specs import DataSpec, expand_path

# Values of `split` that name a test part, best first; sets with a `train` flag need no such list.
_TEST_SPLITS = ("test", "val", "valid")
_TRAIN_SPLITS = ("train", "trainval")
NAMES = (
    "CIFAR10",
    "CIFAR100",
    "Country211",
    "DTD",
    "FGVCAircraft",
    "FakeData",
    "FashionMNIST",
    "Flowers102",
    "Food101",
    "GTSRB",
    "ImageNet",
    "Imagenette",
    "KMNIST",
    "MNIST",
    "OxfordIIITPet",
    "STL10",
    "SVHN",
    "StanfordCars",
    "USPS",
)
_READ_WHOLE = 16


@dataclass(frozen=True)
class _Opener:
    dataset: Any

    def __call__(self, index: int) -> Image.Image:
        image: Image.Image = self.dataset[index][0]
        return image if image.mode in ("L", "RGB") else image.convert("RGB")


def build_torchvision(spec: DataSpec, progress: Progress | None = None) -> Data:
    """Return the data of a torchvision data set, read from `spec.root`, downloaded there only if asked.

    Raises UnknownName, or BadData when its files are missing.
    """
    if spec.name not in NAMES:
        raise unknown_name("data set", spec.name, ("digits", "image_folder", *NAMES))
    cls = getattr(torchvision.datasets, spec.name)
    if spec.name == "FakeData":
        train, test = _fake(cls, spec)
    else:
        train, test = (_open(cls, spec, part) for part in _parts(cls))
    train_set, test_set = _image_set(train, spec, "train"), _image_set(test, spec, "test")
    num_classes = 1 + max(int(part.labels.max()) for part in (train_set, test_set))
    return image_data(spec, train_set, None, test_set, num_classes, progress)


def _parts(cls: Callable[..., Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments that select train and test."""
    if "train" in inspect.signature(cls).parameters:
        return {"train": True}, {"train": False}
    return {"split": _TRAIN_SPLITS}, {"split": _TEST_SPLITS}


def _open(cls: Callable[..., Any], spec: DataSpec, part: dict[str, Any]) -> Any:
    if spec.root is None:
        raise BadData(f"data {spec.name!r} needs root: the folder its files are in, or are downloaded to.")
    root = expand_path(spec.root, "data.root")
    arguments: dict[str, Any] = {"root": str(root), **spec.arguments}
    if "download" in inspect.signature(cls).parameters:
        arguments["download"] = spec.download
    choices = part.get("split", (None,))
    for choice in choices:
        selected = part if choice is None else {"split": choice}
        try:
            return cls(**(arguments | selected))
        except ValueError as error:
            if choice == choices[-1]:
                raise _unreadable(spec, error) from error
        except (AutopruneError, MemoryError):
            raise
        except Exception as error:
            raise _unreadable(spec, error) from error
    raise AssertionError("one of the choices returned or raised")


def _unreadable(spec: DataSpec, error: Exception) -> BadData:
    hint = "" if spec.download else " Set data.download to true to fetch it."
    return BadData(f"data {spec.name!r} cannot be opened in {spec.root}: {type(error).__name__}: {error}{hint}")


def _fake(cls: Callable[..., Any], spec: DataSpec) -> tuple[Any, Any]:
    train = call(cls, spec.arguments, f"data {spec.name!r}")
    offset = int(spec.arguments.get("random_offset", 0)) + len(train)
    return train, call(cls, {**spec.arguments, "random_offset": offset}, f"data {spec.name!r}")


def _image_set(dataset: Any, spec: DataSpec, part: str) -> ImageSet:
    labels = labels_of(dataset)
    if labels is None:
        labels = _read_labels(dataset)
    opener = _Opener(dataset)
    some = range(0, len(dataset), max(1, len(dataset) // _READ_WHOLE))
    contents = [to_tensor(opener(index)).numpy().tobytes() for index in some]
    fingerprint = fingerprint_of(spec.name, part, spec.arguments, labels, contents)
    return ImageSet(opener, labels, fingerprint, fingerprint)


def _read_labels(dataset: Any) -> torch.Tensor:
    for name in ("_labels", "_samples"):
        found = getattr(dataset, name, None)
        if isinstance(found, list) and len(found) == len(dataset):
            return torch.tensor([item[1] if isinstance(item, tuple) else item for item in found])
    return torch.tensor([int(dataset[index][1]) for index in range(len(dataset))])
