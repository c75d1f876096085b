"""What a study is expected to cost: jobs by rung, passes of the model, seconds."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from autoprune.base import Base
from autoprune.cost import latency_ms
from autoprune.data import Data
from autoprune.study.config import StudyConfig

_TIMED_BATCH = 64
_SECONDS_OF_TIMING = 2.0
_REPEATS = 3
_BACKWARD = 3.0
"""A training step takes about as long as this many forward passes."""
_FIXED_SECONDS = 0.2
"""What a job takes besides passes of the model: asking, cutting, files. Seen with small networks on one core."""


@dataclass(frozen=True, kw_only=True)
class ForwardTime:
    """Median times of the base model's forward pass after warm-up, with one sample and with a batch of `batch`."""

    device: str
    sample_ms: float
    batch: int
    batch_ms: float

    @property
    def seconds_per_sample(self) -> float:
        """Seconds for one sample of the batch."""
        return self.batch_ms / 1000 / self.batch


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a study is expected to cost. Jobs per rung are fewer the higher it is."""

    jobs: tuple[float, ...]
    trained_samples: float
    forward_samples: float
    seconds: float
    workers: int


def time_forward(base: Base, data: Data, device: torch.device) -> ForwardTime:
    """Time the base model on the first training samples; it is back on the CPU afterwards.

    The batch has 64 samples, or fewer where a slow model would take more than seconds.
    """

    def timed(count: int) -> float:
        inputs, _ = next(data.train.batches(count, limit=count, device=device))
        return latency_ms(base.model, inputs, warm_up=1, repeats=_REPEATS)

    base.model.to(device)
    try:
        sample_ms = timed(1)
        affordable = int(_SECONDS_OF_TIMING * 1000 / (sample_ms * (1 + _REPEATS)))
        batch = max(1, min(_TIMED_BATCH, len(data.train), affordable))
        return ForwardTime(device=str(device), sample_ms=sample_ms, batch=batch, batch_ms=timed(batch))
    finally:
        base.model.cpu()


def forecast(config: StudyConfig, data: Data, time: ForwardTime, measured: int = 0) -> Forecast:
    """Expect every baseline at every rung, and of the others one in `reduction` to go up.

    measured: samples that recipes which are known beforehand measure cut models on; each goes forward twice, the first
    time for batch norms.
    """
    baselines = min(len(config.baselines) * len(config.targets), config.budget.trials)
    searched = config.budget.trials - baselines
    jobs = tuple(baselines + searched / config.rungs.reduction**rung for rung in range(config.rungs.top + 1))
    whole = len(data.validation)
    trained = sum(count * config.rungs.trained(rung) * len(data.train) for rung, count in enumerate(jobs))
    forward = sum(count * min(config.rungs.samples(rung) or whole, whole) for rung, count in enumerate(jobs))
    forward += 2.0 * measured
    workers = config.executor.worker_count()
    work = (_BACKWARD * trained + forward) * time.seconds_per_sample
    # the cut models cost about their targets' share of the base model
    share = sum(next(part for _, part in t if part is not None) for t in config.targets) / len(config.targets)
    return Forecast(
        jobs=jobs,
        trained_samples=trained,
        forward_samples=forward,
        seconds=(work * share + _FIXED_SECONDS * sum(jobs)) / workers,
        workers=workers,
    )
