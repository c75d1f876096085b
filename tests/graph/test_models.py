"""Published accounting, and models as people bring them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from autoprune.graph import Structure, trace
from autoprune.models import build_model
from autoprune.specs import ModelSpec


def conv_macs(structure: Structure, keep: dict[str, list[int]] | None = None) -> int:
    flops = structure.layer_flops(structure.counts(keep))
    return sum(round(cost) // 2 for layer, cost in zip(structure.layers, flops, strict=True) if layer.kind == "conv")


def cifar(name: str) -> tuple[nn.Module, Structure]:
    model = build_model(ModelSpec(name=name), num_classes=10)
    return model, trace(model, torch.zeros(1, 3, 32, 32), verify=False)


def first_convs(depth: int, stage_removed: tuple[float, ...], skip: set[int]) -> dict[str, list[int]]:
    """Kept filters of Li et al., arXiv 1608.08710: first convolutions of blocks, numbered from 1 at the stem."""
    blocks = (depth - 2) // 6
    keep = {}
    for stage, removed in enumerate(stage_removed):
        width = 16 * 2**stage
        for block in range(blocks):
            number = 2 + 2 * (stage * blocks + block)
            if removed and number not in skip:
                keep[f"layer{stage + 1}.{block}.conv1"] = list(range(math.floor(width * (1 - removed))))
    return keep


@pytest.mark.parametrize(
    ("depth", "removed", "skip", "base", "pruned"),
    [
        (56, (0.1, 0.1, 0.1), {16, 20, 38, 54}, 125_485_056, 112_435_200),
        (56, (0.6, 0.3, 0.1), {16, 18, 20, 34, 38, 54}, 125_485_056, 90_906_624),
        (110, (0.5, 0.0, 0.0), {36}, 252_887_040, 212_779_008),
        (110, (0.5, 0.4, 0.3), {36, 38, 74}, 252_887_040, 155_123_712),
    ],
)
def test_published_residual_networks(
    depth: int, removed: tuple[float, ...], skip: set[int], base: int, pruned: int
) -> None:
    _, structure = cifar(f"resnet{depth}_cifar")
    assert conv_macs(structure) == base
    assert conv_macs(structure, first_convs(depth, removed, skip)) == pruned


def test_published_vgg16() -> None:
    _, structure = cifar("vgg16_bn_cifar")
    convs = [layer.name for layer in structure.layers if layer.kind == "conv"]
    keep = {convs[0]: list(range(32))} | {name: list(range(256)) for name in convs[7:13]}
    assert (conv_macs(structure), conv_macs(structure, keep)) == (313_196_544, 206_143_488)


def test_residual_stream_with_zero_padding_is_prunable() -> None:
    """Three births: 16 channels at the stem, 16 and 32 more where a shortcut pads; each proven."""
    model = build_model(ModelSpec(name="resnet20_cifar"), num_classes=10)
    structure = trace(model, torch.zeros(1, 3, 32, 32))
    streams = {name: structure.group(name).size for name in ("conv1", "layer2.0.conv2", "layer3.0.conv2")}
    assert streams == {"conv1": 16, "layer2.0.conv2": 16, "layer3.0.conv2": 32}
    assert len(structure.groups) == 3 + 9
    # Every group can fall to one unit, so little is left of the 81.1 MFLOPs.
    assert structure.flops() == pytest.approx(81.1e6, rel=2e-3)
    assert structure.reachable_flops[0] < 0.02


MODELS = ("resnet18", "mobilenet_v2", "squeezenet1_0", "shufflenet_v2_x0_5", "mobilenet_v3_small", "googlenet")
SLOW_MODELS = ("densenet121", "vgg11_bn")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*MODELS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_MODELS)])
def test_torchvision(name: str) -> None:
    size = 32 if name.startswith("vgg") else 64
    example = torch.zeros(1, 3, size, size)
    model = torchvision.models.get_model(name, weights=None).eval()
    if name.startswith("vgg"):
        # The same layers with 64 for 4096 features: most of the time would go into copies of 120 million weights.
        model.classifier[0], model.classifier[3] = nn.Linear(512 * 49, 64), nn.Linear(64, 64)
        model.classifier[6] = nn.Linear(64, 1000)
    structure = trace(model, example)
    generator = np.random.default_rng(0)
    keep = {
        group: np.sort(generator.choice(n, int(generator.integers(1, n)), replace=False))
        for group, n in zip(structure.names, structure.sizes.tolist(), strict=True)
    }
    small = structure.cut(model, keep)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        assert small(example).shape == (1, 1000)
    assert counter.get_total_flops() == structure.flops(keep)
    assert sum(p.numel() for p in small.parameters()) == structure.params(keep)
    assert structure.verified == "float64"
    if not name.startswith("shufflenet"):
        assert structure.reachable_flops[0] < 0.02
        assert all(item.operator in ("output", "unread") for item in structure.frozen)
