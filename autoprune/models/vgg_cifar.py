"""VGG-16 with batch norm for 32x32 images, as pruning papers use it. Simonyan and Zisserman, arXiv 1409.1556.

Thirteen 3x3 convolutions (313,196,544 MACs) with batch norm and five poolings down to 1x1, then two linear
layers (512 -> 512 -> classes) as in Li et al., arXiv 1608.08710: 15.0 M parameters.
"""

from __future__ import annotations

from torch import Tensor, nn

_POOL = 0
_LAYERS = (64, 64, _POOL, 128, 128, _POOL, 256, 256, 256, _POOL, 512, 512, 512, _POOL, 512, 512, 512, _POOL)
_HIDDEN = 512


class CifarVGG(nn.Module):
    """(N, in_channels, 32, 32) -> (N, num_classes)."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.features = _features(in_channels)
        self.classifier = nn.Sequential(
            nn.Linear(_LAYERS[-2], _HIDDEN),
            nn.BatchNorm1d(_HIDDEN),
            nn.ReLU(inplace=True),
            nn.Linear(_HIDDEN, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


def _features(in_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    width_in = in_channels
    for width in _LAYERS:
        if width == _POOL:
            layers.append(nn.MaxPool2d(2))
            continue
        convolution = nn.Conv2d(width_in, width, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        width_in = width
    return nn.Sequential(*layers)


def vgg16_bn_cifar(num_classes: int = 10, in_channels: int = 3) -> CifarVGG:
    """Build the network of this file."""
    return CifarVGG(num_classes, in_channels)
