"""Evidence about a tiny network whose weights a test sets by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from autoprune.data import Data, TensorSplit
from autoprune.evidence import ModelEvidence, Source
from autoprune.graph import Structure, trace
from autoprune.tasks import build_task

Look = Callable[[nn.Module, torch.Tensor], tuple[Structure, ModelEvidence]]


@pytest.fixture
def look() -> Look:
    """Trace a model on inputs (N, ...) and return its structure and evidence; the targets are index modulo 3."""

    def at(model: nn.Module, inputs: torch.Tensor) -> tuple[Structure, ModelEvidence]:
        split = TensorSplit(inputs, torch.arange(len(inputs)) % 3)
        data = Data(split, split, None, "tiny", 3, "tiny")
        structure = trace(model.eval(), inputs[:2])
        source = Source(data=data, task=build_task(), batches=2, batch_size=8, device=torch.device("cpu"))
        return structure, ModelEvidence(model, structure, source, seed=0)

    return at
