"""Images in folders named after their classes, in a folder or straight out of a .zip file."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image

from autoprune.data.cache import Progress
from autoprune.data.files import ImageFile, ImageStore, read_layout
from autoprune.data.fingerprint import fingerprint_of
from autoprune.data.image_sets import ImageSet, image_data
from autoprune.data.split import Data
from autoprune.specs import DataSpec, expand_path

_READ_WHOLE = 64


@dataclass(frozen=True)
class _Opener:
    store: ImageStore
    paths: tuple[str, ...]

    def __call__(self, index: int) -> Image.Image:
        return self.store.open(self.paths[index])


def build_image_folder(spec: DataSpec, progress: Progress | None = None) -> Data:
    """Return the data of `spec.root`. Raises BadData where it is missing or `read_layout` cannot read it."""
    store = ImageStore(expand_path(spec.root or "", "data.root"))
    layout = read_layout(store)
    train = _image_set(store, layout.train)
    validation = _image_set(store, layout.validation) if layout.validation else None
    test = _image_set(store, layout.test) if layout.test else None
    return image_data(spec, train, validation, test, len(layout.classes), progress)


def _image_set(store: ImageStore, files: tuple[ImageFile, ...]) -> ImageSet:
    opener = _Opener(store, tuple(file.path for file in files))
    labels = torch.tensor([file.label for file in files])
    key = fingerprint_of(str(store.root.resolve()), files)
    return ImageSet(opener, labels, key, _content(store, files))


def _content(store: ImageStore, files: tuple[ImageFile, ...]) -> str:
    """Fingerprint names, sizes and a few whole files: the same for a copy, a folder and its archive."""
    names = [("/".join(file.path.split("/")[-2:]), file.stamp[0]) for file in files]
    step = max(1, len(files) // _READ_WHOLE)
    contents = [store.read(file.path) for file in files[::step]]
    return fingerprint_of(names, contents)
