"""Networks with residual blocks, and what the tests of blocks share."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from autoprune.graph import Structure, trace
from autoprune.graph.preparing import plainly

from .networks import head


def seeded(make: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


def counted(model: nn.Module, inputs: Tensor) -> int:
    with torch.no_grad(), plainly(model), FlopCounterMode(display=False) as counter:
        model(inputs)
    return int(counter.get_total_flops())


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def names(structure: Structure) -> list[str]:
    return [block.name for block in structure.blocks]


def reasons(structure: Structure) -> dict[str, str]:
    return {fixed.name: fixed.reason for fixed in structure.fixed_blocks}


def image(size: int = 32) -> Tensor:
    return torch.zeros(1, 3, size, size)


def small_swin() -> nn.Module:
    return torchvision.models.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=5)


def small_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(32, 8, 3, 4, 16, 32, num_classes=5)


def small_convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(8, 16, 2), CNBlockConfig(16, None, 2)], num_classes=5, stochastic_depth_prob=0.2)


MODELS: dict[str, tuple[Any, int, list[str]]] = {
    "resnet18": (
        torchvision.models.resnet18,
        64,
        ["layer1.0", "layer1.1", "layer2.1", "layer3.1", "layer4.1"],
    ),
    "resnet50": (
        torchvision.models.resnet50,
        64,
        [f"layer{stage}.{i}" for stage, count in ((1, 3), (2, 4), (3, 6), (4, 3)) for i in range(1, count)],
    ),
    "mobilenet_v2": (
        torchvision.models.mobilenet_v2,
        64,
        [f"features.{i}" for i in (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)],
    ),
    "vit": (small_vit, 32, [f"encoder.layers.encoder_layer_{i}" for i in range(3)]),
    "swin": (small_swin, 32, ["features.1.0", "features.1.1", "features.3.0", "features.3.1"]),
    "convnext": (small_convnext, 32, ["features.1.0", "features.1.1", "features.3.0", "features.3.1"]),
}
FIRST = {
    "resnet18": ["layer1.0"],
    "resnet50": [],
    "mobilenet_v2": [],
    "vit": ["encoder.layers.encoder_layer_0"],
    "swin": ["features.1.0", "features.3.0"],
    "convnext": ["features.1.0", "features.3.0"],
}


@cache
def traced(name: str) -> tuple[nn.Module, Tensor, Structure]:
    make, size, _ = MODELS[name]
    model = seeded(make)
    return model, image(size), trace(model, image(size))


def draw(structure: Structure, seed: int) -> tuple[list[str], dict[str, np.ndarray]]:
    """Random blocks to skip, and random units to keep of the groups that are left."""
    generator = np.random.default_rng(seed)
    skip = [name for name in names(structure) if generator.random() < 0.5]
    keep = {}
    less = structure.without_blocks(skip)
    for name, size in zip(less.names, less.sizes.tolist(), strict=True):
        keep[name] = np.sort(generator.choice(size, int(generator.integers(1, size + 1)), replace=False))
    return skip, keep


class Wrapped(nn.Module):
    """A stem that gives values of both signs, a block, a head."""

    def __init__(self, block: nn.Module, width: int = 6, positive: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.positive = positive
        self.block = block
        self.head = head(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.block(functional.relu(x) if self.positive else x))
