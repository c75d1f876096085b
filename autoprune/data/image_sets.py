"""Labelled images as splits: decoded into the cache or read one by one, a validation part split off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from autoprune.data.cache import Progress, cached_images
from autoprune.data.fingerprint import fingerprint_of
from autoprune.data.images import ImagePreparation, Pixels
from autoprune.data.split import Data, DatasetSplit, Split, TensorSplit, stratified_split
from autoprune.errors import BadData
from autoprune.specs import DataSpec


@dataclass(frozen=True)
class ImageSet:
    """Labelled images that can be opened by number.

    key: of this machine's cache, changes when any file does. fingerprint: of the content, on any machine.
    """

    open: Callable[[int], Image.Image]
    labels: Tensor  # (N,) int64
    key: str
    fingerprint: str


class DecodedImages(Dataset[tuple[Tensor, int]]):
    """A map-style data set of (C, H, W) uint8 images, resized, with their labels as `targets`."""

    def __init__(self, images: ImageSet, size: int | None) -> None:
        self._images, self._size = images, size
        self.targets = images.labels

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.image(index), int(self.targets[index])

    def image(self, index: int) -> Tensor:
        """Return one image, (C, H, W) uint8."""
        return to_tensor(resized(self._images.open(index), self._size))


def resized(image: Image.Image, size: int | None) -> Image.Image:
    """Resize the shorter side to `size` and crop the centre to a square; None leaves the image as it is."""
    if size is None or image.size == (size, size):
        return image
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    return image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))


def to_tensor(image: Image.Image) -> Tensor:
    """Return (C, H, W) uint8 of a grey or RGB image."""
    array_HWC = np.array(image, dtype=np.uint8)
    array_HWC = array_HWC[:, :, None] if array_HWC.ndim == 2 else array_HWC
    return torch.from_numpy(array_HWC.transpose(2, 0, 1).copy())


def image_data(
    spec: DataSpec,
    train: ImageSet,
    validation: ImageSet | None,
    test: ImageSet | None,
    num_classes: int,
    progress: Progress | None = None,
) -> Data:
    """Return the data of image sets; without a validation set a part of train is split off by class."""
    whole = _split(spec, train, progress)
    if validation is None:
        kept, held = stratified_split(train.labels, spec.validation_fraction, spec.seed)
        if len(held) == 0:
            raise BadData(f"data {spec.name!r} has too few images to split off a validation part: {len(train.labels)}.")
        train_split, validation_split = whole.subset(kept), whole.subset(held)
    else:
        train_split, validation_split = whole, _split(spec, validation, progress)
    contents = tuple(None if part is None else part.fingerprint for part in (train, validation, test))
    return Data(
        train=train_split,
        validation=validation_split,
        test=None if test is None else _split(spec, test, progress),
        name=spec.name,
        num_classes=num_classes,
        fingerprint=fingerprint_of(contents, spec.size, spec.mean, spec.std, spec.validation_fraction, spec.seed),
        pixels=Pixels(spec.mean, spec.std),
    )


def _split(spec: DataSpec, images: ImageSet, progress: Progress | None) -> Split:
    prepare = ImagePreparation(spec.mean, spec.std, spec.augment)
    decoded = DecodedImages(images, spec.size)
    if spec.cache == "none":
        return DatasetSplit(decoded, prepare=prepare, workers=spec.workers, collate=_collate)
    key = fingerprint_of(images.key, spec.size)
    pixels = cached_images(key, len(decoded), decoded.image, progress)
    return TensorSplit(pixels, images.labels, prepare=prepare)


def _collate(samples: list[Any]) -> tuple[Tensor, Tensor]:
    shapes = sorted({tuple(image.shape) for image, _ in samples})
    if len(shapes) > 1:
        raise BadData(
            f"images differ in size or channels: (C, H, W) {shapes[0]} and {shapes[1]}. Set data.size to resize them."
        )
    return torch.stack([image for image, _ in samples]), torch.tensor([label for _, label in samples])
