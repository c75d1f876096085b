"""Residual networks for 32x32 images with 20, 32, 44, 56 or 110 layers. He et al., CVPR 2016.

arXiv 1512.03385, section 4.2: a 3x3 convolution, three stages of n basic blocks 16/32/64 wide (6n + 2 layers
in all), global average pooling and one linear layer. Shortcuts have no parameters (option A): a block that
widens takes every second pixel of its input and pads the new channels with zeros.
Departs from the paper: half of the zeros go before the old channels, half behind, as published weights want.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import pad, relu

_WIDTHS = (16, 32, 64)


class ZeroPadShortcut(nn.Module):
    """Every `stride`-th pixel, with `pad_before` and `pad_after` channels of zeros around the given ones.

    The three attributes are all it has; a cut of channels changes the paddings.
    """

    def __init__(self, stride: int, pad_before: int, pad_after: int) -> None:
        super().__init__()
        self.stride, self.pad_before, self.pad_after = stride, pad_before, pad_after

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, pad_before + C + pad_after, ceil(H / stride), ceil(W / stride))."""
        thinned = x[:, :, :: self.stride, :: self.stride]
        return pad(thinned, (0, 0, 0, 0, self.pad_before, self.pad_after))

    def extra_repr(self) -> str:
        """Say the attributes in the model's printout."""
        return f"stride={self.stride}, pad_before={self.pad_before}, pad_after={self.pad_after}"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; (N, C_in, H, W) -> (N, C, H / stride, W / stride)."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width_in != width:
            new = width - width_in
            self.shortcut = ZeroPadShortcut(stride, new // 2, new - new // 2)

    def forward(self, x: Tensor) -> Tensor:
        out = relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """(N, in_channels, H, W) -> (N, num_classes)."""

    def __init__(self, depth: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, _WIDTHS[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_WIDTHS[0])
        self.layer1 = _stage(_WIDTHS[0], _WIDTHS[0], 1, blocks)
        self.layer2 = _stage(_WIDTHS[0], _WIDTHS[1], 2, blocks)
        self.layer3 = _stage(_WIDTHS[1], _WIDTHS[2], 2, blocks)
        self.linear = nn.Linear(_WIDTHS[2], num_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        out = relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        logits: Tensor = self.linear(out.mean(dim=(2, 3)))
        return logits


def _stage(width_in: int, width: int, stride: int, blocks: int) -> nn.Sequential:
    first = BasicBlock(width_in, width, stride)
    return nn.Sequential(first, *(BasicBlock(width, width, 1) for _ in range(blocks - 1)))


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def resnet20_cifar(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """20 layers: 0.27 M parameters, 81.1 MFLOPs for ten classes."""
    return CifarResNet(20, num_classes, in_channels)


def resnet32_cifar(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """32 layers."""
    return CifarResNet(32, num_classes, in_channels)


def resnet44_cifar(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """44 layers."""
    return CifarResNet(44, num_classes, in_channels)


def resnet56_cifar(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """56 layers: 0.85 M parameters, 251 MFLOPs for ten classes."""
    return CifarResNet(56, num_classes, in_channels)


def resnet110_cifar(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """110 layers."""
    return CifarResNet(110, num_classes, in_channels)
