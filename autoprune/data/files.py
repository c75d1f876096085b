"""Image files of a folder or of a .zip file, sorted into splits and classes by their paths."""

from __future__ import annotations

import io
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image, UnidentifiedImageError

from autoprune.errors import BadData

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
_TRAIN = "train"
_VALIDATION = ("val", "valid", "validation")
_TEST = "test"
_LAYOUT = "Expected <class>/<image>, or train/<class>/<image> with test/ or val/ beside it."


@dataclass(frozen=True)
class ImageFile:
    """One image: path below the root, size in bytes with checksum or time of change, class."""

    path: str
    stamp: tuple[int, ...]
    label: int


class ImageStore:
    """Opens images by path below a root, a folder or a .zip file. Pickles into other processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._archive: tuple[int, zipfile.ZipFile] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {"root": self.root, "_archive": None}

    def stamps(self) -> dict[str, tuple[int, ...]]:
        """Return the path of every file with its size and checksum (zip) or time of change (folder)."""
        if not self.root.exists():
            raise BadData(f"there is no folder or file {self.root}; set data.root to a folder or a .zip of images.")
        if self.root.is_dir():
            return _folder_stamps(self.root)
        return {i.filename: (i.file_size, i.CRC) for i in self._zip().infolist() if not i.is_dir()}

    def open(self, path: str) -> Image.Image:
        """Return a decoded image, grey or RGB. Raises BadData for a file that is no image."""
        try:
            content = self.read(path)
            with Image.open(io.BytesIO(content)) as image:
                return image.convert("L" if image.mode in ("1", "L", "I;16") else "RGB")
        except (UnidentifiedImageError, OSError, zipfile.BadZipFile) as error:
            raise BadData(f"{self.root}: {path} cannot be read as an image: {error}") from error

    def read(self, path: str) -> bytes:
        """Return the bytes of a file."""
        return (self.root / path).read_bytes() if self.root.is_dir() else self._zip().read(path)

    def _zip(self) -> zipfile.ZipFile:
        # a file handle shared with a forked process would be moved under our feet
        if self._archive is None or self._archive[0] != os.getpid():
            try:
                self._archive = (os.getpid(), zipfile.ZipFile(self.root))
            except zipfile.BadZipFile as error:
                raise BadData(f"{self.root} is neither a folder nor a .zip file of images.") from error
        return self._archive[1]


@dataclass(frozen=True)
class ImageLayout:
    """The images of each split, sorted by path, and the names of the classes."""

    classes: tuple[str, ...]
    train: tuple[ImageFile, ...]
    validation: tuple[ImageFile, ...]
    test: tuple[ImageFile, ...]


def read_layout(store: ImageStore) -> ImageLayout:
    """Sort the images of a store into splits and classes.

    A single folder around everything is ignored. A val/ without a test/ beside it is the test split, as in
    ImageNet; with one it is the validation split. Raises BadData for another layout.
    """
    stamps = {p: s for p, s in store.stamps().items() if _is_image(p)}
    if not stamps:
        raise BadData(f"no images in {store.root}. {_LAYOUT}")
    parts = _split_parts(stamps, store.root)
    classes = tuple(sorted({label for _, label in parts[_TRAIN].values()}))
    if len(classes) < 2:
        raise BadData(f"{store.root} has only one class to train on, {classes[0]!r}. {_LAYOUT}")
    numbers = {name: number for number, name in enumerate(classes)}
    files: dict[str, tuple[ImageFile, ...]] = {}
    for split, paths in parts.items():
        strange = sorted({label for _, label in paths.values()} - set(classes))
        if strange:
            raise BadData(f"{store.root}: {split}/ has classes that train/ lacks: {', '.join(strange[:5])}.")
        files[split] = tuple(ImageFile(p, s, numbers[label]) for p, (s, label) in sorted(paths.items()))
    return ImageLayout(classes, files[_TRAIN], files["validation"], files[_TEST])


_Found = dict[str, tuple[tuple[int, ...], str]]


def _split_parts(stamps: dict[str, tuple[int, ...]], root: Path) -> dict[str, _Found]:
    depth = _common_depth(stamps)
    tops = {PurePosixPath(path).parts[depth] for path in stamps}
    parts: dict[str, _Found] = {_TRAIN: {}, "validation": {}, _TEST: {}}
    has_splits = _TRAIN in tops
    for path, stamp in stamps.items():
        names = PurePosixPath(path).parts[depth:]
        split = _split_of(names[0], tops) if has_splits else _TRAIN
        if split is None:
            continue
        below = names[1:] if has_splits else names
        if len(below) < 2:
            raise BadData(f"{root}: {path} lies outside any class folder. {_LAYOUT}")
        parts[split][path] = (stamp, below[0])
    return parts


def _split_of(top: str, tops: set[str]) -> str | None:
    if top in (_TRAIN, _TEST):
        return top
    if top in _VALIDATION:
        return "validation" if _TEST in tops else _TEST
    return None


def _common_depth(stamps: dict[str, tuple[int, ...]]) -> int:
    """Return 1 where everything lies in one folder that holds train/ or further folders, else 0."""
    paths = [PurePosixPath(path).parts for path in stamps]
    tops = {names[0] for names in paths}
    deep = all(len(names) >= 3 for names in paths)
    return 1 if len(tops) == 1 and deep and tops != {_TRAIN} else 0


def _is_image(path: str) -> bool:
    names = PurePosixPath(path)
    hidden = any(part.startswith((".", "__")) for part in names.parts)
    return not hidden and names.suffix.lower() in _SUFFIXES


def _folder_stamps(root: Path) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for folder, _, names in os.walk(root, followlinks=True):
        for name in names:
            path = Path(folder, name)
            status = path.stat()
            found[path.relative_to(root).as_posix()] = (status.st_size, status.st_mtime_ns)
    return found
