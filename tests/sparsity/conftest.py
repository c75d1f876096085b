"""Small networks and data to mask, and a training that methods can ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoprune.data import Data, TensorSplit
from autoprune.fields import hyperparameters
from autoprune.masks import Hold, Masks
from autoprune.seeds import derive_seed
from autoprune.sparsity import SparsityContext
from autoprune.tasks import Task, classification
from autoprune.training import train
from autoprune.training_settings import TrainingSettings

SAMPLES, BATCH = 64, 8


def network(seed: int = 0) -> nn.Sequential:
    """(N, 4, 6, 6) -> (N, 4): 288 + 1152 + 64 weights of three layers."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(16, 4),
    ).eval()


@dataclass
class Trainer:
    """Trains with the loop that everything is trained with, and remembers how often and with which masks."""

    split: TensorSplit
    task: Task
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)
    calls: list[tuple[float, Masks]] = field(default_factory=list)

    def __call__(self, model: nn.Module, epochs: float, hook: Hold, *purpose: str | int) -> None:
        self.calls.append((epochs, {name: mask.clone() for name, mask in hook.masks.items()}))
        known = hyperparameters(TrainingSettings)
        given = {"lr": 0.05, "batch_size": BATCH} | {k: v for k, v in self.settings.items() if k in known}
        train(
            model,
            self.split,
            TrainingSettings(**given),
            task=self.task,
            samples=max(2, round(epochs * len(self.split))),
            seed=derive_seed(self.seed, *purpose),
            hook=hook,
            **{k: v for k, v in self.settings.items() if k not in known},
        )


MakeContext = Callable[..., SparsityContext]


@pytest.fixture
def make_context() -> MakeContext:
    """Return a maker of contexts, over 64 images (N, 4, 6, 6) of 4 classes when nothing else is given."""

    def make(
        inputs: Tensor | None = None,
        targets: Tensor | None = None,
        *,
        task: Task | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> SparsityContext:
        targets = torch.arange(SAMPLES) % 4 if targets is None else targets
        if inputs is None:
            inputs = torch.randn(SAMPLES, 4, 6, 6, generator=torch.Generator().manual_seed(0))
            inputs[torch.arange(SAMPLES), targets] += 1.0
        split = TensorSplit(inputs, targets)
        kind = classification() if task is None else task
        return SparsityContext(
            data=Data(split, split, None, "tiny", 4, "tiny"),
            task=kind,
            seed=seed,
            device=torch.device("cpu"),
            train=Trainer(split, kind, seed, settings),
        )

    return make
