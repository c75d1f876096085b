"""Images decoded once into a file that every process maps: $AUTOPRUNE_CACHE, else ~/.cache/autoprune."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autoprune.errors import BadData

Progress = Callable[[int, int], None]


def cache_folder() -> Path:
    """Return where decoded images are kept; made when missing."""
    named = os.environ.get("AUTOPRUNE_CACHE")
    folder = Path(named).expanduser() if named else Path.home() / ".cache" / "autoprune"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cached_images(key: str, count: int, decode: Callable[[int], Tensor], progress: Progress | None = None) -> Tensor:
    """Return (count, C, H, W) uint8, mapped from the cache file of this key, written first if missing.

    decode(i) -> (C, H, W) uint8. progress(done, count) is called now and then while decoding.
    Of several processes that need the same file, one decodes and the others wait.
    """
    path = cache_folder() / f"images-{key}.npy"
    if not path.exists():
        with _lock(path.with_suffix(".lock")):
            if not path.exists():
                _write(path, count, decode, progress)
    # copy on write: torch warns of read-only arrays; the pages are shared as long as nobody writes
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def _write(path: Path, count: int, decode: Callable[[int], Tensor], progress: Progress | None) -> None:
    first = decode(0)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    os.close(handle)
    try:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=(count, *first.shape))
        for index in range(count):
            image = decode(index)
            if image.shape != first.shape:
                raise BadData(
                    f"images differ in size or channels: image 0 has (C, H, W) {tuple(first.shape)}, "
                    f"image {index} {tuple(image.shape)}. Set data.size to resize them."
                )
            array[index] = image.numpy()
            if progress is not None and (index % 1000 == 999 or index + 1 == count):
                progress(index + 1, count)
        array.flush()
        with Path(temporary).open("rb+") as file:
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # not on Windows: there two processes may decode the same, and the later file stays
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
