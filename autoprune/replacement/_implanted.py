"""A convolution of which some output channels have a kernel of one position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from autoprune.errors import NotApplicable

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Implanted(nn.Module):
    """Full kernels for most output channels, 1x1 for those in `rows`, in the order of the convolution's channels.

    `kept` is the convolution of the other channels, or None where there are none; `implant` has the same stride and no
    dilation. It reads the input at the centres of the full kernel: with less padding, or with none behind a crop.
    """

    def __init__(self, conv: nn.Module, rows: Sequence[int]) -> None:
        """Weights are not set; no random number is drawn.

        Raises NotApplicable for anything but a plain dense convolution of odd kernel, ValueError for wrong rows.
        """
        super().__init__()
        conv = checked(conv, rows)
        margins = _margins(conv)
        self._crop = tuple(max(-m, 0) for m in margins)
        others = sorted(set(range(conv.out_channels)) - set(rows))
        padding = tuple(max(m, 0) for m in margins)
        common: dict[str, Any] = {"stride": conv.stride, "padding_mode": conv.padding_mode}
        own = {"kernel_size": conv.kernel_size, "padding": conv.padding, "dilation": conv.dilation}
        self.kept = _empty(conv, len(others), **own, **common) if others else None
        self.implant = _empty(conv, len(rows), kernel_size=1, padding=padding, **common)
        order = torch.argsort(torch.tensor([*others, *rows]))
        self.register_buffer("order", order.to(conv.weight.device), persistent=False)
        self.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        inner = x
        for axis, crop in enumerate(self._crop, start=x.dim() - len(self._crop)):
            if crop:
                inner = inner.narrow(axis, crop, inner.shape[axis] - 2 * crop)
        thin = cast(Tensor, self.implant(inner))
        if self.kept is None:
            return thin
        channels = x.dim() - len(self._crop) - 1
        return torch.cat([self.kept(x), thin], dim=channels).index_select(channels, cast(Tensor, self.order))


def checked(module: nn.Module, rows: Sequence[int]) -> nn.Conv2d:
    """Return the module as a convolution. Raises NotApplicable or ValueError as `Implanted` does."""
    if type(module) not in _CONVOLUTIONS:
        raise NotApplicable(f"only a plain Conv1d to Conv3d can be implanted, got {type(module)}")
    conv = cast(nn.Conv2d, module)
    if conv.groups != 1 or not has_centre(conv.kernel_size):
        raise NotApplicable(
            f"an implant needs a dense convolution whose kernel is odd and larger than 1, got groups {conv.groups} and "
            f"kernel {conv.kernel_size}"
        )
    if not rows or list(rows) != sorted(set(rows)) or not 0 <= rows[0] <= rows[-1] < conv.out_channels:
        raise ValueError(f"rows to implant must rise and lie in 0..{conv.out_channels - 1}, got {list(rows)}")
    return conv


def has_centre(kernel: Sequence[int]) -> bool:
    """Whether a kernel of several positions has one in its middle."""
    return max(kernel, default=1) > 1 and all(size % 2 == 1 for size in kernel)


def _margins(conv: _ConvNd) -> list[int]:
    """Return by axis the padding at which one position reads what the kernel's centre reads; below 0: a crop."""
    reach = [dilation * (size - 1) // 2 for dilation, size in zip(conv.dilation, conv.kernel_size, strict=True)]
    if isinstance(conv.padding, str):
        return [0] * len(reach) if conv.padding == "same" else [-r for r in reach]
    return [p - r for p, r in zip(conv.padding, reach, strict=True)]


def _empty(conv: nn.Conv2d, out_channels: int, **geometry: Any) -> nn.Conv2d:
    has_bias, dtype = conv.bias is not None, conv.weight.dtype
    # layers made on the device "meta" draw no random weights
    made = type(conv)(conv.in_channels, out_channels, bias=has_bias, device="meta", dtype=dtype, **geometry)
    made = made.to_empty(device=conv.weight.device)
    made.weight.requires_grad_(conv.weight.requires_grad)
    if conv.bias is not None and made.bias is not None:
        made.bias.requires_grad_(conv.bias.requires_grad)
    return made
