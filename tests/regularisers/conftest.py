"""Small networks with data, to be shaped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoprune.data import Data, TensorSplit
from autoprune.graph import Structure, trace
from autoprune.regularisers import RegulariserContext
from autoprune.tasks import Task, classification

MakeContext = Callable[..., RegulariserContext]


@pytest.fixture
def four_classes() -> TensorSplit:
    """Return 512 images (N, 3, 8, 8) of 4 classes: a noisy pattern each."""
    draws = torch.Generator().manual_seed(0)
    patterns = torch.randn(4, 3, 8, 8, generator=draws)
    labels = torch.arange(512) % 4
    return TensorSplit(patterns[labels] + 2 * torch.randn(512, 3, 8, 8, generator=draws), labels)


@pytest.fixture
def network() -> Callable[..., nn.Sequential]:
    """Return a maker of two convolutions of 16 and 32 channels with batch norm, (N, 3, 8, 8) -> (N, 4), seeded."""

    def make(seed: int = 0) -> nn.Sequential:
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(32, 4),
        ).eval()  # fmt: skip

    return make


@pytest.fixture
def make_context(four_classes: TensorSplit) -> MakeContext:
    """Return a maker of contexts for a model; `choose` keeps the units of largest L1 norm, half of each group."""

    def make(model: nn.Module, *, split: TensorSplit | None = None, **changes: Any) -> RegulariserContext:
        train = split or four_classes
        inputs, _ = next(train.batches(2))
        structure = trace(model, inputs)
        settings: dict[str, Any] = {
            "structure": structure,
            "choose": lambda now, alive=None, progress=1.0: largest(now, structure),
            "data": Data(train, train, None, "tiny", 4, "tiny"),
            "task": classification(),
            "seed": 0,
            "device": torch.device("cpu"),
        }
        return RegulariserContext(**(settings | changes))

    return make


def largest(model: nn.Module, structure: Structure) -> Mapping[str, list[int]]:
    """Return the half of each group with the largest weights."""
    weights: dict[str, Tensor] = dict(model.named_parameters())
    kept = {}
    for group in structure.groups:
        norm_C = weights[group.producers[0].tensor].detach().abs().flatten(1).sum(dim=1)
        kept[group.name] = sorted(norm_C.argsort(descending=True)[: group.size // 2].tolist())
    return kept


@pytest.fixture
def no_loss() -> Task:
    """Return a task whose loss is 0 and has zero gradients: what moves weights is not the data."""
    return Task(
        loss=lambda output, _: 0.0 * output.sum(), metric=lambda output, _: (0.0, len(output)), classification=True
    )
