"""What the recovery methods that train by gradients share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from autoprune.recovery._base import Recovery, RecoveryContext
from autoprune.seeds import derive_seed
from autoprune.tasks import Task
from autoprune.training import ModelLoss, samples_of, train
from autoprune.training_settings import TrainingSettings


@dataclass(frozen=True, kw_only=True)
class _Training(TrainingSettings, Recovery):
    """A recovery that trains by gradients."""

    trains: ClassVar[bool] = True

    def _train(
        self, model: nn.Module, context: RecoveryContext, epochs: float, task: Task, loss: ModelLoss | None
    ) -> int:
        """Train in place for epochs * len(train) samples, at least 2 unless epochs is 0; return how many."""
        if epochs < 0:
            raise ValueError(f"epochs must be 0 or more, got {epochs}")
        if epochs == 0:
            model.to(context.device).eval()
            return 0
        report = train(
            model,
            context.data.train,
            self,
            task=task,
            samples=samples_of(epochs, context.data.train),
            loss=loss,
            # one purpose for all methods: with one seed they see the same batches
            seed=derive_seed(context.seed, "recovery"),
            device=context.device,
            mixed_precision=context.mixed_precision,
            hook=context.hook,
        )
        return report.samples
