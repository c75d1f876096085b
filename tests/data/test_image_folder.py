from __future__ import annotations

import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from autoprune.data import Data, DatasetSplit, TensorSplit, build_data, cache, image_sets
from autoprune.errors import BadData

CLASSES = ("cat", "dog")
PER_CLASS = 10


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOPRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(folder: Path, offset: int = 0, side: int = 4) -> None:
    """Write images of one colour each: the red value tells the number, cats are from 0, dogs from 100."""
    for c, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for i in range(PER_CLASS):
            pixels = np.zeros((side, side, 3), np.uint8)
            pixels[..., 0] = offset + 100 * c + i
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


def packed(folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder), "zip", folder.parent, folder.name))


def build(root: Path, **fields: Any) -> Data:
    return build_data({"name": "image_folder", "root": str(root), "validation_fraction": 0.2, **fields})


def reds(split: Any) -> set[int]:
    return {round(float(red) * 255) for x, _ in split.batches(7) for red in x[:, 0, 0, 0]}


@pytest.mark.parametrize("store", ["folder", "zip"])
@pytest.mark.parametrize("mode", ["memory", "none"])
def test_layout_with_train_and_test(tmp_path: Path, store: str, mode: str) -> None:
    write(tmp_path / "pets" / "train")
    write(tmp_path / "pets" / "test", offset=50)
    root = tmp_path / "pets" if store == "folder" else packed(tmp_path / "pets")
    data = build(root, cache=mode)
    assert isinstance(data.train, TensorSplit if mode == "memory" else DatasetSplit)
    assert (len(data.train), len(data.validation), data.num_classes) == (16, 4, 2)
    everything = {*range(10), *range(100, 110)}
    assert reds(data.train) | reds(data.validation) == everything
    assert not reds(data.train) & reds(data.validation)
    assert reds(data.test) == {red + 50 for red in everything}
    for inputs, targets in data.train.batches(3, seed=1):
        assert torch.equal((inputs[:, 0, 0, 0] > 0.3).long(), targets)
    assert data.example_inputs.shape == (2, 3, 4, 4)
    assert data.validation.labels().bincount().tolist() == [2, 2]  # type: ignore[union-attr]
    copy = pickle.loads(pickle.dumps(data))  # noqa: S301
    assert reds(copy.train) == reds(data.train)


def test_layout_of_classes_only(tmp_path: Path) -> None:
    write(tmp_path / "pets")
    data = build(tmp_path / "pets")
    assert data.test is None
    assert len(data.train) + len(data.validation) == 20


def test_a_lone_val_is_the_test_split_and_beside_test_the_validation(tmp_path: Path) -> None:
    write(tmp_path / "a" / "train")
    write(tmp_path / "a" / "val", offset=50)
    assert reds(build(tmp_path / "a").test) == {*range(50, 60), *range(150, 160)}
    write(tmp_path / "a" / "test", offset=20)
    data = build(tmp_path / "a")
    assert len(data.train) == 20
    assert reds(data.validation) == {*range(50, 60), *range(150, 160)}
    assert reds(data.test) == {*range(20, 30), *range(120, 130)}


def test_cached_and_uncached_batches_are_equal_and_augmented_alike(tmp_path: Path) -> None:
    write(tmp_path / "pets", side=8)
    fields: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.2] * 3, "augment": "crop_flip"}
    both = [build(tmp_path / "pets", cache=mode, **fields).train for mode in ("memory", "none")]
    for augment in (False, True):
        one, other = (list(split.batches(5, seed=3, augment=augment)) for split in both)
        assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(one, other, strict=True))


def test_size_resizes_the_shorter_side_and_crops_the_centre() -> None:
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = 200
    out = image_sets.to_tensor(image_sets.resized(Image.fromarray(wide), 4))
    assert out.shape == (3, 4, 4)
    assert (out == 200).all()
    assert image_sets.resized(Image.fromarray(wide), 8).size == (8, 8)


@pytest.mark.parametrize("mode", ["memory", "none"])
def test_images_of_different_size_need_size(tmp_path: Path, mode: str) -> None:
    write(tmp_path / "pets")
    Image.new("RGB", (9, 5)).save(tmp_path / "pets" / "dog" / "0.png")
    with pytest.raises(BadData, match=r"images differ in size.*Set data\.size"):
        list(build(tmp_path / "pets", cache=mode, validation_fraction=0.1).train.batches(20))
    assert build(tmp_path / "pets", cache=mode, size=6).example_inputs.shape == (2, 3, 6, 6)


def test_the_cache_is_written_once_and_again_when_a_file_changes(
    tmp_path: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "pets")
    seen: list[tuple[int, int]] = []
    spec = {"name": "image_folder", "root": str(tmp_path / "pets"), "cache": "memory"}
    first = build_data(spec, progress=lambda done, count: seen.append((done, count)))
    assert seen == [(20, 20)]
    with monkeypatch.context() as patch:
        patch.setattr(cache, "_write", None)  # would raise if it were called
        assert reds(build_data(spec).train) == reds(first.train)
    Image.new("RGB", (4, 4), (250, 0, 0)).save(tmp_path / "pets" / "dog" / "3.png")
    changed = build_data(spec)
    assert 250 in reds(changed.train) | reds(changed.validation)
    assert not list(cache_folder.glob("*.part"))


def test_an_interrupted_decode_leaves_nothing_behind(tmp_path: Path, cache_folder: Path) -> None:
    def decode(index: int) -> torch.Tensor:
        if index == 2:
            raise KeyboardInterrupt
        return torch.zeros(1, 2, 2, dtype=torch.uint8)

    with pytest.raises(KeyboardInterrupt):
        cache.cached_images("key", 4, decode)
    assert [path.suffix for path in cache_folder.iterdir()] == [".lock"]


def test_the_fingerprint_is_of_the_content_not_of_the_place(tmp_path: Path) -> None:
    write(tmp_path / "pets" / "train")
    shutil.copytree(tmp_path / "pets", tmp_path / "copy", copy_function=shutil.copyfile)
    prints = {build(root).fingerprint for root in (tmp_path / "pets", tmp_path / "copy", packed(tmp_path / "pets"))}
    assert len(prints) == 1
    Image.new("RGB", (4, 4), (250, 9, 9)).save(tmp_path / "copy" / "train" / "dog" / "3.png")
    assert build(tmp_path / "copy").fingerprint not in prints
    assert build(tmp_path / "pets", seed=1).fingerprint not in prints


def test_a_missing_root_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="there is no folder or file"):
        build(tmp_path / "none")


def test_a_root_without_images_is_told(tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets" / "notes.txt").write_text("nothing")
    with pytest.raises(BadData, match=r"no images in .*Expected <class>/<image>"):
        build(tmp_path / "pets")


def test_a_file_that_is_no_archive_is_told(tmp_path: Path) -> None:
    (tmp_path / "pets.zip").write_bytes(b"not a zip")
    with pytest.raises(BadData, match=r"neither a folder nor a \.zip"):
        build(tmp_path / "pets.zip")


def test_an_image_outside_a_class_is_told(tmp_path: Path) -> None:
    write(tmp_path / "pets" / "train")
    Image.new("RGB", (4, 4)).save(tmp_path / "pets" / "train" / "lost.png")
    with pytest.raises(BadData, match=r"train/lost\.png lies outside any class folder"):
        build(tmp_path / "pets")


def test_a_single_class_is_told(tmp_path: Path) -> None:
    write(tmp_path / "pets")
    shutil.rmtree(tmp_path / "pets" / "dog")
    with pytest.raises(BadData, match="only one class to train on, 'cat'"):
        build(tmp_path / "pets")


def test_a_class_that_train_lacks_is_told(tmp_path: Path) -> None:
    write(tmp_path / "pets" / "train")
    write(tmp_path / "pets" / "test")
    (tmp_path / "pets" / "test" / "dog").rename(tmp_path / "pets" / "test" / "fox")
    with pytest.raises(BadData, match="test/ has classes that train/ lacks: fox"):
        build(tmp_path / "pets")


@pytest.mark.parametrize("mode", ["memory", "none"])
def test_a_damaged_image_is_told_by_name(tmp_path: Path, mode: str) -> None:
    write(tmp_path / "pets")
    (tmp_path / "pets" / "dog" / "3.png").write_bytes(b"no image")
    with pytest.raises(BadData, match=r"dog/3\.png cannot be read as an image"):
        list(build(tmp_path / "pets", cache=mode, validation_fraction=0.01).train.subset(torch.arange(18)).batches(9))


def test_hidden_files_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "pets")
    with zipfile.ZipFile(packed(tmp_path / "pets"), "a") as archive:
        archive.writestr("__MACOSX/pets/dog/._3.png", b"x")
    assert len(build(tmp_path / "pets.zip").train) == 16


def test_grey_images_have_one_channel(tmp_path: Path) -> None:
    for name in CLASSES:
        (tmp_path / "grey" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("L", (4, 4), i).save(tmp_path / "grey" / name / f"{i}.png")
    assert build(tmp_path / "grey").example_inputs.shape == (2, 1, 4, 4)
