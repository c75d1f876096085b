"""Training of a base model that comes without weights."""

from __future__ import annotations

import torch
from torch import nn

from autoprune.data.split import Data
from autoprune.specs import TrainSpec
from autoprune.tasks import Task
from autoprune.training import OnStep, TrainingReport, samples_of, train


def train_base(
    model: nn.Module,
    data: Data,
    task: Task,
    spec: TrainSpec,
    *,
    seed: int,
    progress: OnStep | None = None,
    device: torch.device | str | None = None,
) -> TrainingReport:
    """Train a model in place on the train split; progress(samples done, loss) is called after every step.

    Raises LossNotFinite, OutOfMemory.
    """
    return train(
        model,
        data.train,
        spec.settings,
        task=task,
        samples=total_samples(data, spec),
        milestones=spec.milestones,
        label_smoothing=spec.label_smoothing,
        seed=seed,
        device=device,
        on_step=progress,
    )


def total_samples(data: Data, spec: TrainSpec) -> int:
    """Return how many samples the training will draw."""
    return samples_of(spec.epochs, data.train)
