"""A small network and small data to recover on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from autoprune.data import Data, TensorSplit
from autoprune.recovery import RecoveryContext
from autoprune.tasks import Task, classification

MakeContext = Callable[..., RecoveryContext]
MakeNetwork = Callable[..., nn.Module]


@pytest.fixture
def network() -> MakeNetwork:
    """Return a maker of networks of (N, 3, 6, 6) -> (N, 4), seeded, with or without batch norm."""

    def make(*, norms: bool = True, dropout: float = 0.2, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8) if norms else nn.Identity(),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(32, 4),
        ).eval()

    return make


@pytest.fixture
def make_context(network: MakeNetwork) -> MakeContext:
    """Return a maker of contexts, over 50 images (N, 3, 6, 6) of 4 classes when nothing else is given."""

    def make(
        inputs: torch.Tensor | None = None,
        targets: torch.Tensor | None = None,
        *,
        teacher: nn.Module | None = None,
        task: Task | None = None,
        seed: int = 0,
    ) -> RecoveryContext:
        draws = torch.Generator().manual_seed(0)
        inputs = torch.randn(50, 3, 6, 6, generator=draws) if inputs is None else inputs
        targets = torch.arange(len(inputs)) % 4 if targets is None else targets
        train = TensorSplit(inputs, targets)
        settings: dict[str, Any] = {"seed": seed, "device": torch.device("cpu")}
        return RecoveryContext(
            data=Data(train, train, None, "tiny", 4, "tiny"),
            task=classification() if task is None else task,
            teacher=network(seed=1) if teacher is None else teacher,
            **settings,
        )

    return make
