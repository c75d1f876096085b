"""Hyperparameters of a training by gradients, and the call of the training loop, for all methods that train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from autoprune.data import Split
from autoprune.fields import choice, integer, real
from autoprune.specs import RateSchedule
from autoprune.tasks import Task
from autoprune.training import ModelLoss, OnGradients, StepHook, train


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Hyperparameters of a training by gradients.

    The search range of the learning rate is that of SGD, the only optimiser that is searched.
    """

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
    schedule: RateSchedule = choice(  # noqa: RUF009 - a literal behind an alias
        "cosine",
        options=("cosine", "constant", "step"),
        search=("cosine",),
        help="learning rate after the warm-up; step: a tenth at half and again at three quarters of the training",
    )
    warmup_fraction: float = real(
        0.0, valid=(0.0, 0.9), search=(0.0, 0.2), help="part of the training with a rising learning rate"
    )
    batch_size: int = integer(128, valid=(2, 65536), search=(64, 256), log=True, help="samples per step")

    def train(
        self,
        model: nn.Module,
        split: Split,
        samples: int,
        *,
        task: Task,
        seed: int,
        device: torch.device,
        mixed_precision: bool,
        loss: ModelLoss | None = None,
        decay_all: bool = False,
        hook: StepHook | None = None,
        on_gradients: OnGradients | None = None,
        enough: Callable[[], bool] | None = None,
    ) -> int:
        """Train in place on `samples` samples, fewer when it was enough; return how many. See `training.train`."""
        report = train(
            model,
            split,
            task=task,
            samples=samples,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
            warmup_fraction=self.warmup_fraction,
            loss=loss,
            seed=seed,
            device=device,
            mixed_precision=mixed_precision,
            decay_all=decay_all,
            hook=hook,
            on_gradients=on_gradients,
            enough=enough,
        )
        return report.samples
