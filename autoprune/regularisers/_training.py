"""What regularisers share: one training of the model in their context."""

from __future__ import annotations

from torch import nn

from autoprune.regularisers._base import RegulariserContext
from autoprune.training import ModelLoss, StepHook, train
from autoprune.training_settings import TrainingSettings


def train_in(
    context: RegulariserContext,
    model: nn.Module,
    settings: TrainingSettings,
    samples: int,
    *,
    loss: ModelLoss | None = None,
    hook: StepHook | None = None,
    decay_all: bool = False,
) -> int:
    """Train in place on the context's training split, with its task, seed and device; return how many samples."""
    report = train(
        model,
        context.data.train,
        settings,
        task=context.task,
        samples=samples,
        loss=loss,
        seed=context.seed,
        device=context.device,
        mixed_precision=context.mixed_precision,
        decay_all=decay_all,
        hook=hook,
    )
    return report.samples
