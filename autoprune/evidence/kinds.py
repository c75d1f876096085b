"""Kinds of evidence, and where it is taken from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from autoprune.data import Data
from autoprune.data.split import Batch
from autoprune.tasks import Task

Gathered = Mapping[str, Tensor]
BATCH_ORDER_SEED = 0


class Evidence(StrEnum):
    """Kinds of evidence that a method can need."""

    WEIGHTS = "weights"
    GATE_GRADIENTS = "gate_gradients"
    INPUT_MOMENTS = "input_moments"
    READINGS = "readings"
    EXEMPLARS = "exemplars"
    UNIT_CURVATURE = "unit_curvature"
    GAUSS_NEWTON = "gauss_newton"
    HESSIAN_TRACES = "hessian_traces"
    GATE_CURVATURE = "gate_curvature"
    EXAMPLE_GATE_GRADIENTS = "example_gate_gradients"
    ACTIVATIONS = "activations"
    NEXT_LAYER = "next_layer"
    FINAL_RESPONSES = "final_responses"
    FILTER_GRADIENTS = "filter_gradients"
    KRONECKER = "kronecker"
    GROUP_SENSITIVITIES = "group_sensitivities"


OF_A_RECIPE = frozenset({Evidence.GROUP_SENSITIVITIES})
"""Kinds that depend on what a recipe removes and corrects: measured when a trial asks, not gathered beforehand."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where evidence comes from: batches of training data and the loss on them."""

    data: Data
    task: Task
    batches: int
    batch_size: int
    device: torch.device

    @property
    def samples(self) -> int:
        """Samples that one gathering sends forward and backward."""
        there = len(self.data.train)
        whole_batches = there // self.batch_size * self.batch_size
        return min(self.batches * self.batch_size, whole_batches or there)

    def draw(self) -> Iterator[Batch]:
        """Yield the batches, the same ones every time."""
        return self.data.train.batches(self.batch_size, seed=BATCH_ORDER_SEED, limit=self.samples, device=self.device)
