"""The hyperparameters of a training by gradients, declared once for base models and for all methods that train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from autoprune.fields import choice, integer, real

RateSchedule = Literal["cosine", "constant", "step"]
HALF_AND_THREE_QUARTERS = (0.5, 0.75)
"""Where the schedule `step` lowers the rate unless it is told otherwise, as parts of the training."""


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
