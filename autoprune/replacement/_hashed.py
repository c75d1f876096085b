"""A convolution that merges the input channels which hash alike, tile by tile and sample by sample."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoprune.dynamic import Dynamic, Tally

Projection = Literal["ternary", "gaussian"]
_CHUNK = 2**25
"""Numbers that windows and comparisons of channels may take at once; more samples go in turns."""


class Merged(NamedTuple):
    """One convolution's outputs (N, O, H, W) and the number of buckets (N, rows, columns) in every tile."""

    outputs: Tensor
    buckets: Tensor


class Hashed(nn.Conv2d, Dynamic):
    """A two-dimensional convolution with a cheaper way in eval mode. Its state is that of the convolution.

    Every channel of a bucket has the bucket's mean, so that the plain kernel gives what a merged one would: the sum
    over a bucket of F_c times its mean. This is a reference: it counts the merged convolution's FLOPs, but spends more.
    """

    planes: Tensor

    def __init__(self, conv: nn.Conv2d, *, planes: int, tile: int, zeros: float, projection: Projection, seed: int):
        geometry: dict[str, Any] = {
            name: getattr(conv, name) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
        }
        bias = conv.bias is not None
        super().__init__(
            conv.in_channels, conv.out_channels, bias=bias, device="meta", dtype=conv.weight.dtype, **geometry
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.enabled, self.tally, self._tile = True, None, tile
        self._gaussian = projection == "gaussian"
        height, width = (self._window(tile, axis) for axis in (0, 1))
        drawn = hyperplanes(height * width, planes, zeros, projection, seed)
        made = drawn.view(height, width, planes).to(conv.weight)
        self.register_buffer("planes", made, persistent=False)
        self.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """Take the cheaper way in eval mode where it is enabled."""
        if self.training or not self.enabled:
            return super().forward(x)
        if x.dim() == 3:
            return self.forward(x[None])[0]
        # a trace has no number of samples to divide
        whole = torch.compiler.is_compiling() or x.shape[0] <= self._at_once(x)
        parts = [self.merged(part) for part in ([x] if whole else torch.split(x, self._at_once(x)))]
        if self.tally is not None:
            self._count(self.tally, torch.cat([part.buckets for part in parts]), *self._sizes(x))
        return torch.cat([part.outputs for part in parts])

    def _at_once(self, x: Tensor) -> int:
        """Return how many samples may be merged together."""
        height, width = self._sizes(x)
        numbers = self.in_channels * (math.prod(self.planes.shape[:2]) + self.planes.shape[2] + self.in_channels)
        tiles = math.ceil(height / self._tile) * math.ceil(width / self._tile)
        return max(1, _CHUNK // (numbers * tiles))

    def merged(self, x: Tensor) -> Merged:
        """Convolve (N, C, H, W) with the channels of every bucket at their mean."""
        height, width = self._sizes(x)
        tiles, out = (math.ceil(height / self._tile), math.ceil(width / self._tile)), (height, width)
        windows = self._windows(x, tiles, out)
        rows, columns = windows.shape[-2:]
        planes = self.planes[:rows, :columns].flatten(0, 1)
        values = windows.permute(0, 2, 3, 1, 4, 5).flatten(4)  # sample, row, column, channel, pixel
        codes = hash_codes(values, planes)
        alike = (codes[..., :, None] == codes[..., None, :]).to(values.dtype)
        sizes = alike.sum(dim=-1)
        means = (alike @ values) / sizes[..., None]
        flat = means.reshape(-1, self.in_channels, rows, columns)
        made = F.conv2d(flat, self.weight, self.bias, self.stride, 0, self.dilation)
        side, long = made.shape[-2:]
        grid = made.view(x.shape[0], *tiles, self.out_channels, side, long).permute(0, 3, 1, 4, 2, 5)
        whole = grid.reshape(x.shape[0], self.out_channels, tiles[0] * side, tiles[1] * long)
        buckets = (1 / sizes).sum(dim=-1).round()
        return Merged(whole[..., :height, :width].contiguous(), buckets)

    def _window(self, tile: int, axis: int) -> int:
        """Return how many inputs along an axis so many outputs read."""
        return (tile - 1) * self.stride[axis] + (self.kernel_size[axis] - 1) * self.dilation[axis] + 1

    def _sizes(self, x: Tensor) -> tuple[int, int]:
        around = self._reversed_padding_repeated_twice
        spans = [
            (x.shape[2 + a] + sum(around[2 - 2 * a : 4 - 2 * a]) - self._window(1, a)) // self.stride[a] + 1
            for a in (0, 1)
        ]
        return spans[0], spans[1]

    def _windows(self, x: Tensor, tiles: tuple[int, int], out: tuple[int, int]) -> Tensor:
        """Return (N, C, rows, columns, height, width). Zeros behind the padding make the last tiles whole.

        A zero adds nothing to a hash and no output reads it, so that a smaller tile is as if it were cut off.
        """
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        x = F.pad(x, self._reversed_padding_repeated_twice, mode=mode)
        sizes = [self._window(min(self._tile, out[axis]), axis) for axis in (0, 1)]
        steps = [min(self._tile, out[axis]) * self.stride[axis] for axis in (0, 1)]
        spans = [(tiles[axis] - 1) * steps[axis] + sizes[axis] for axis in (0, 1)]
        more = [max(0, spans[axis] - x.shape[2 + axis]) for axis in (0, 1)]
        x = F.pad(x, (0, more[1], 0, more[0]))[:, :, : spans[0], : spans[1]]
        return x.unfold(2, sizes[0], steps[0]).unfold(3, sizes[1], steps[1])

    def _count(self, tally: Tally, buckets: Tensor, height: int, width: int) -> None:
        """Add FLOPs: 2 for each product, 1 for each addition or scaling besides, bias in neither."""
        channels, kernel = self.in_channels, math.prod(self.kernel_size)
        flops_N = torch.zeros(len(buckets), dtype=torch.float64, device=buckets.device)
        products_N = torch.zeros_like(flops_N)
        for i in range(buckets.shape[1]):
            for j in range(buckets.shape[2]):
                tile_h, tile_w = min(self._tile, height - i * self._tile), min(self._tile, width - j * self._tile)
                rows, columns = self._window(tile_h, 0), self._window(tile_w, 1)
                left_N = buckets[:, i, j].double()
                products_N += 2 * kernel * left_N * self.out_channels * tile_h * tile_w
                flops_N += overhead(
                    channels, self.out_channels, kernel, left_N, self.planes[:rows, :columns], self._gaussian
                )
        dense = 2 * kernel * channels * self.out_channels * height * width
        tally.add(flops_N + products_N, products_N, buckets.double().flatten(1).mean(dim=1) / channels, dense)


def overhead(
    channels: int, outputs: int, kernel: int, buckets_N: Tensor, planes: Tensor, gaussian: bool = False
) -> Tensor:
    """Return (N,) the FLOPs of centring, hashing and merging of one tile. planes: (height, width, L) of its window."""
    pixels = planes.shape[0] * planes.shape[1]
    hashing = channels * (2 * planes.numel() if gaussian else int(planes.count_nonzero()))
    centring = 2 * channels * pixels if planes.shape[2] else 0
    merging_N = (channels - buckets_N) * pixels + buckets_N * pixels
    return centring + hashing + merging_N + (channels - buckets_N) * outputs * kernel


def hash_codes(values: Tensor, planes: Tensor) -> Tensor:
    """Return int64 codes (..., C) of channels (..., C, pixels), centred over the channels, by planes (pixels, L)."""
    centred = values - values.mean(dim=-2, keepdim=True)
    bits = (centred @ planes) > 0
    weights = 2 ** torch.arange(planes.shape[1], device=planes.device)
    codes: Tensor = (bits * weights).sum(dim=-1)
    return codes


def hyperplanes(pixels: int, planes: int, zeros: float, projection: Projection, seed: int) -> Tensor:
    """Return (pixels, L): entries of 1 and -1 alike and so many zeros, or normal ones."""
    draws = torch.Generator().manual_seed(seed)
    if projection == "gaussian":
        return torch.randn(pixels, planes, generator=draws)
    uniform = torch.rand(pixels, planes, generator=draws)
    half = (1 - zeros) / 2
    return (uniform < half).float() - (uniform >= 1 - half).float()
