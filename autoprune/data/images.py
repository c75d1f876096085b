"""From stored images, (N, C, H, W) uint8 or float, to the float32 batches that a model takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from autoprune.errors import BadData
from autoprune.specs import Augment


@dataclass(frozen=True)
class Pixels:
    """How inputs were made of values in [0, 1]: (value - mean) / std per channel, or as they are without."""

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass(frozen=True)
class ImagePreparation:
    """Augments (only when a generator is given), scales uint8 to [0, 1] and normalises per channel."""

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    augment: Augment = "none"

    def __call__(self, images: Tensor, draws: torch.Generator | None) -> Tensor:
        """Return (N, C, H, W) float32. Raises BadData when mean and std are of other channels."""
        if draws is not None and self.augment == "crop_flip":
            images = crop_flip(images, padding_of(images), draws)
        elif draws is not None and self.augment == "flip":
            images = crop_flip(images, 0, draws)
        return self._normalise(images)

    def _normalise(self, images: Tensor) -> Tensor:
        full = 255.0 if images.dtype == torch.uint8 else 1.0
        floats = images.float()
        if self.mean is None or self.std is None:
            return floats / full if full != 1.0 else floats
        if len(self.mean) != images.shape[1]:
            raise BadData(f"mean and std have {len(self.mean)} values, the images {images.shape[1]} channels.")
        mean = torch.tensor(self.mean, device=images.device).mul_(full).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=images.device).mul_(full).view(1, -1, 1, 1)
        return (floats - mean).div_(std)


def padding_of(images: Tensor) -> int:
    """Return how far a random crop shifts, in pixels: an eighth of the height, so 4 for 32 as is usual."""
    return int(images.shape[-2]) // 8


def crop_flip(images: Tensor, padding: int, draws: torch.Generator) -> Tensor:
    """Pad with zeros, crop back at random, mirror every second image or so; each image on its own.

    images (N, C, H, W) of any type. An image shifted by (dy, dx) and maybe mirrored shows at (y, x) the pixel
    (y + dy - padding, x' + dx - padding) with x' = x or W - 1 - x. dy, dx in 0..2*padding.
    """
    n, _, height, width = images.shape
    shifts = torch.randint(0, 2 * padding + 1, (2, n), generator=draws)
    mirrored = torch.randint(0, 2, (n,), generator=draws).bool()
    rows_NH = shifts[0, :, None] + torch.arange(height)
    columns_NW = torch.arange(width).expand(n, width)
    columns_NW = torch.where(mirrored[:, None], width - 1 - columns_NW, columns_NW) + shifts[1, :, None]
    padded = pad(images, (padding, padding, padding, padding))
    return _pick(padded, rows_NH.to(images.device), columns_NW.to(images.device))


def _pick(images: Tensor, rows_NH: Tensor, columns_NW: Tensor) -> Tensor:
    samples = torch.arange(len(images), device=images.device)[:, None, None]
    picked_NHWC = images.permute(0, 2, 3, 1)[samples, rows_NH[:, :, None], columns_NW[:, None, :]]
    return picked_NHWC.permute(0, 3, 1, 2).contiguous()
