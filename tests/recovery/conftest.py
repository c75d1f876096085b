"""A small network and small data to recover on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from autoprune.data import Data, TensorSplit
from autoprune.evidence import ModelEvidence, Source
from autoprune.graph import trace
from autoprune.recovery import Cut, RecoveryContext
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


@pytest.fixture
def make_cut(make_context: MakeContext) -> Callable[..., Any]:
    """Return a maker of (base model, cut model, context of the cut, inputs) of a small network in double precision."""

    def make(
        model: nn.Module | None = None, inputs: torch.Tensor | None = None, keep: Any = None
    ) -> tuple[nn.Module, nn.Module, RecoveryContext, torch.Tensor]:
        torch.manual_seed(0)
        if model is None:
            convs = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU())
            model = nn.Sequential(*convs, nn.Flatten(), nn.Linear(6 * 36, 4)).double()
        if inputs is None:
            inputs = torch.randn(64, 3, 6, 6, dtype=torch.float64)
        context = make_context(inputs, teacher=model.eval())
        structure = trace(model, inputs[:2])
        kept = {"0": [0, 2, 3, 6]} if keep is None else keep
        source = Source(data=context.data, task=context.task, batches=1, batch_size=len(inputs), device=context.device)
        evidence = ModelEvidence(model, structure, source, seed=0)
        cut = Cut(structure=structure, evidence=evidence, selection=structure.selection(kept))
        return model, structure.cut(model, kept), dataclasses.replace(context, cut=cut), inputs

    return make
