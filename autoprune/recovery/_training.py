"""What the methods that train by gradients share: their hyperparameters and the call of the training loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from autoprune.fields import choice, integer, real
from autoprune.recovery._base import Recovery, RecoveryContext
from autoprune.seeds import derive_seed
from autoprune.tasks import Task
from autoprune.training import ModelLoss, train


@dataclass(frozen=True, kw_only=True)
class _Training(Recovery):
    """Hyperparameters of a training by gradients.

    The search range of the learning rate is that of SGD, the only optimiser that is searched.
    """

    trains: ClassVar[bool] = True

    lr: float = real(
        0.02,
        valid=(1e-7, 10.0),
        search=(0.005, 0.1),
        log=True,
        help="highest learning rate; adamw wants about 0.001",
    )
    optimizer: Literal["sgd", "adamw"] = choice(
        "sgd",
        options=("sgd", "adamw"),
        search=("sgd",),
        help="sgd with Nesterov momentum, or adamw",
    )
    momentum: float = real(0.9, valid=(0.0, 0.999), search=(0.8, 0.95), help="momentum of sgd, first beta of adamw")
    weight_decay: float = real(
        5e-4, valid=(0.0, 1.0), search=(1e-5, 1e-3), log=True, help="of weights; biases and norms have none"
    )
    schedule: Literal["cosine", "constant"] = choice(
        "cosine",
        options=("cosine", "constant"),
        search=("cosine",),
        help="learning rate after the warm-up",
    )
    warmup_fraction: float = real(
        0.0, valid=(0.0, 0.9), search=(0.0, 0.2), help="part of the training with a rising learning rate"
    )
    batch_size: int = integer(128, valid=(2, 65536), search=(64, 256), log=True, help="samples per step")

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
            task=task,
            samples=max(2, round(epochs * len(context.data.train))),
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
            warmup_fraction=self.warmup_fraction,
            loss=loss,
            # one purpose for all methods: with one seed they see the same batches
            seed=derive_seed(context.seed, "recovery"),
            device=context.device,
            mixed_precision=context.mixed_precision,
            hook=context.hook,
        )
        return report.samples
