from __future__ import annotations

import pytest
import torch

from autoprune.data.images import ImagePreparation, crop_flip, padding_of
from autoprune.errors import BadData

# One 2x3 image; with a padding of 1 it lies in the middle of 4x5 zeros.
IMAGE = torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.uint8)
# By hand: shift (dy, dx) takes rows dy..dy+1 and columns dx..dx+2 of the padded image.
CROPS = {
    (0, 0): [[0, 0, 0], [0, 1, 2]],
    (0, 1): [[0, 0, 0], [1, 2, 3]],
    (0, 2): [[0, 0, 0], [2, 3, 0]],
    (1, 0): [[0, 1, 2], [0, 4, 5]],
    (1, 1): [[1, 2, 3], [4, 5, 6]],
    (1, 2): [[2, 3, 0], [5, 6, 0]],
    (2, 0): [[0, 4, 5], [0, 0, 0]],
    (2, 1): [[4, 5, 6], [0, 0, 0]],
    (2, 2): [[5, 6, 0], [0, 0, 0]],
}
ALL = list(CROPS.values()) + [[row[::-1] for row in crop] for crop in CROPS.values()]


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_crop_and_mirror_occurs_about_equally_often_and_nothing_else() -> None:
    count = 3600
    out = crop_flip(IMAGE.expand(count, 1, 2, 3), 1, draws())
    seen = [ALL.index(image.tolist()) for image in out[:, 0]]
    counts = torch.tensor(seen).bincount(minlength=len(ALL))
    assert counts.min() > 140  # 200 expected, standard deviation 14
    assert counts.max() < 260
    assert out.dtype == torch.uint8
    assert out.is_contiguous()


def test_all_channels_of_an_image_move_together_and_images_on_their_own() -> None:
    out = crop_flip(torch.stack([IMAGE, IMAGE + 10]).expand(50, 2, 2, 3), 1, draws())
    zero = out[:, 0] == 0
    assert torch.equal(out[:, 0][~zero] + 10, out[:, 1][~zero])
    assert len({str(image.tolist()) for image in out}) > 5


def test_without_padding_images_are_only_mirrored() -> None:
    out = crop_flip(IMAGE.expand(100, 1, 2, 3), 0, draws())
    mirrored = (out == IMAGE.flip(-1)).all(dim=(1, 2, 3))
    assert ((out == IMAGE).all(dim=(1, 2, 3)) | mirrored).all()
    assert 30 < int(mirrored.sum()) < 70


def test_the_same_draws_give_the_same_images_and_the_input_stays() -> None:
    images = torch.rand(8, 3, 8, 8, generator=draws(1))
    before, global_state = images.clone(), torch.get_rng_state()
    assert torch.equal(crop_flip(images, 1, draws(2)), crop_flip(images, 1, draws(2)))
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), global_state)


def test_the_padding_is_an_eighth() -> None:
    assert [padding_of(torch.zeros(1, 1, side, side)) for side in (8, 32, 224)] == [1, 4, 28]


def test_normalisation_scales_bytes_first() -> None:
    prepare = ImagePreparation(mean=(0.5,), std=(0.25,))
    byte = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    assert prepare(byte, None).flatten().tolist() == pytest.approx([-2.0, -1.2, 2.0], abs=1e-6)
    assert prepare(byte / 255, None).flatten().tolist() == pytest.approx([-2.0, -1.2, 2.0], abs=1e-6)
    assert ImagePreparation()(byte, None).flatten().tolist() == pytest.approx([0.0, 0.2, 1.0])


@pytest.mark.parametrize(("augment", "changes"), [("none", False), ("flip", True), ("crop_flip", True)])
def test_augmentation_happens_only_with_draws(augment: str, changes: bool) -> None:
    images = torch.rand(16, 1, 8, 8, generator=draws(1))
    prepare = ImagePreparation(augment=augment)  # type: ignore[arg-type]
    assert torch.equal(prepare(images, None), images)
    assert torch.equal(prepare(images, draws()), images) != changes


def test_another_number_of_channels_is_told() -> None:
    prepare = ImagePreparation(mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0))
    with pytest.raises(BadData, match="mean and std have 3 values, the images 1 channels"):
        prepare(torch.zeros(2, 1, 4, 4), None)
