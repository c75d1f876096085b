"""A network in the style of LeNet-5. LeCun et al., Proc. IEEE 1998, for grey images of 28x28 pixels.

Two 5x5 convolutions (6 and 16 channels, the first padded by 2), each followed by pooling, then linear layers
120, 84 and the classes: 61,706 parameters for ten.
Departs from the paper, as is usual today: ReLU, max pooling, full connections between the convolutions and a
plain linear output.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu


class LeNet(nn.Module):
    """(N, in_channels, image_size, image_size) -> (N, num_classes)."""

    def __init__(self, num_classes: int, in_channels: int, image_size: int) -> None:
        super().__init__()
        side = (image_size // 2 - 4) // 2
        if side < 1:
            raise ValueError(f"image_size must be at least 12, got {image_size}")
        self.conv1 = nn.Conv2d(in_channels, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * side * side, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = max_pool2d(relu(self.conv1(x)), 2)
        out = max_pool2d(relu(self.conv2(out)), 2)
        out = relu(self.fc1(out.flatten(1)))
        logits: Tensor = self.fc3(relu(self.fc2(out)))
        return logits


def lenet(num_classes: int = 10, in_channels: int = 1, image_size: int = 28) -> LeNet:
    """Build the network of this file."""
    return LeNet(num_classes, in_channels, image_size)
