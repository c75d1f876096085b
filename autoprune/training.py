"""The one training loop: of base models, and of compressed ones that recover."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from autoprune.data.split import Split, training_batches
from autoprune.errors import LossNotFinite, OutOfMemory
from autoprune.seeds import derive_seed
from autoprune.tasks import Task, batch_length, device_of, forward
from autoprune.training_settings import HALF_AND_THREE_QUARTERS, TrainingSettings

ModelLoss = Callable[[nn.Module, Any, Any], Tensor]
OnStep = Callable[[int, float], None]


class StepHook:
    """Takes part in a training, step by step; this one does nothing. `autoprune.masks` has the one that holds masks."""

    def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        """Called once before the first of `steps` steps."""

    def before_step(self, step: int) -> bool:
        """Called when the gradients of a step (from 0) are there, before clipping. True: the optimiser leaves it out.

        They are those of the loss, unscaled; with data parallelism they are averaged over all replicas by then.
        """
        return False

    def after_step(self, step: int) -> None:
        """Called after every step, whether the optimiser took it or not."""

    def enough(self) -> bool:
        """Asked after every step: True ends the training."""
        return False


class Train(Protocol):
    """Trains a model as the recipe's training recovery does: the same loss, optimiser and learning rate, from anew."""

    def __call__(self, model: nn.Module, epochs: float, hook: StepHook, *purpose: str | int) -> None:
        """Train in place and leave the model in eval mode. The order of samples derives from seed and purpose.

        Raises BadRecipe when the recipe has no recovery that trains, LossNotFinite, OutOfMemory.
        """


_STEP_FACTOR = 0.1
_CHECK_EVERY = 10  # steps between looks at the loss: reading it waits for an accelerator
_LAST_STEPS = 20  # behind `mean_loss_last`


@dataclass(frozen=True)
class TrainingReport:
    """What a training did. samples: drawn, fewer than asked only after a deadline or when it was enough."""

    samples: int
    steps: int
    mean_loss_last: float  # over the last 20 steps
    seconds: float


def train(
    model: nn.Module,
    split: Split,
    settings: TrainingSettings,
    *,
    task: Task,
    samples: int,
    milestones: Sequence[float] = HALF_AND_THREE_QUARTERS,
    label_smoothing: float = 0.0,
    loss: ModelLoss | None = None,
    seed: int,
    device: torch.device | str | None = None,
    mixed_precision: bool = False,
    augment: bool = True,
    clip_norm: float | None = None,
    decay_all: bool = False,
    hook: StepHook | None = None,
    on_step: OnStep | None = None,
    deadline: float | None = None,
) -> TrainingReport:
    """Train a model in place on exactly `samples` samples, pass after pass; leave it in eval mode.

    settings: sgd is with Nesterov momentum; adamw takes `momentum` as its first beta. The schedule cosine falls to zero
    at the last sample, step to a tenth at each of the milestones, which are parts of the training in 0..1; for
    warmup_fraction of the samples the rate rises linearly.
    loss(model, inputs, targets): instead of the task's; label_smoothing then has no effect.
    device: moves the model; None trains it where it is. mixed_precision: bfloat16 autocast.
    decay_all: also decay biases and norm parameters (tensors of one axis), which is off.
    hook: takes part in every step, and may end the training.
    clip_norm: largest norm of the whole gradient. on_step(samples done, loss): after every step.
    deadline: on time.monotonic(); training stops after the step that passes it.
    Everything random derives from `seed`. Raises LossNotFinite, OutOfMemory.
    """
    if device is not None:
        model.to(device)
    place = device_of(model)
    objective = loss if loss is not None else task_loss(task.smoothed(label_smoothing))
    part = hook if hook is not None else StepHook()
    steps_rule, batch_size = _optimizer(model, settings, decay_all), settings.batch_size
    rate = _Rate(settings, samples, tuple(milestones))
    began, done, steps = time.monotonic(), 0, 0
    recent: deque[Tensor] = deque(maxlen=_LAST_STEPS)
    model.train()
    with _own_random_state(seed, place), out_of_memory_fails("training"), _eval_mode_after(model):
        part.begin(model, steps_rule, steps_for(samples, batch_size))
        for inputs, targets in training_batches(split, batch_size, samples, seed, augment=augment, device=place):
            size = batch_length(targets)
            for group in steps_rule.param_groups:
                group["lr"] = rate.at(done + size / 2)
            steps_rule.zero_grad(set_to_none=True)
            with torch.autocast(place.type, torch.bfloat16, enabled=mixed_precision):
                value = objective(model, inputs, targets)
            value.backward()  # type: ignore[no-untyped-call]
            skipped = part.before_step(steps)
            if clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
            if not skipped:
                steps_rule.step()
            part.after_step(steps)
            done, steps = done + size, steps + 1
            recent.append(value.detach())
            if on_step is not None:
                on_step(done, float(recent[-1]))
            if steps % _CHECK_EVERY == 0:
                _check_finite(recent, done, settings.lr)
            if part.enough() or (deadline is not None and time.monotonic() > deadline):
                break
        _check_finite(recent, done, settings.lr)
    return TrainingReport(done, steps, float(torch.stack(list(recent)).mean()), time.monotonic() - began)


def samples_of(epochs: float, split: Split) -> int:
    """Return how many samples so many epochs are, at least 2."""
    return max(2, round(epochs * len(split)))


def steps_for(samples: int, batch_size: int) -> int:
    """Return how many steps `train` takes for so many samples.

    >>> steps_for(96, 32), steps_for(97, 32), steps_for(98, 32)
    (3, 3, 4)
    """
    # a remainder of one sample joins the batch before it, see `training_batches`
    return max(1, samples // batch_size + (samples % batch_size > 1))


def task_loss(task: Task) -> ModelLoss:
    """Return the task's loss as a function of model and batch."""
    return lambda model, inputs, targets: task.loss(forward(model, inputs), targets)


@contextmanager
def out_of_memory_fails(what: str) -> Iterator[None]:
    """Turn running out of memory, on CPU or accelerator, into OutOfMemory, which fails one trial only."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(_out_of_memory(what, error)) from error
    except RuntimeError as error:
        # what torch's CPU allocator raises has no type of its own
        if "can't allocate memory" not in str(error) and "not enough memory" not in str(error):
            raise
        raise OutOfMemory(_out_of_memory(what, error)) from error


def _out_of_memory(what: str, error: BaseException) -> str:
    return f"{what} ran out of memory; a smaller batch_size needs less. {error}".strip()


@dataclass(frozen=True)
class _Rate:
    """Learning rate after a number of samples."""

    settings: TrainingSettings
    samples: int
    milestones: tuple[float, ...]

    def at(self, samples_done: float) -> float:
        peak, warmup = self.settings.lr, self.settings.warmup_fraction
        t = min(samples_done / self.samples, 1.0)
        if t < warmup:
            return peak * t / warmup
        if self.settings.schedule == "constant":
            return peak
        if self.settings.schedule == "step":
            return peak * _STEP_FACTOR ** sum(t >= milestone for milestone in self.milestones)
        u = (t - warmup) / (1.0 - warmup)
        return peak * 0.5 * (1.0 + math.cos(math.pi * u))


def _optimizer(model: nn.Module, settings: TrainingSettings, decay_all: bool) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if decay_all or p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if not decay_all and p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    momentum = settings.momentum
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=momentum, nesterov=momentum > 0)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(momentum, 0.999))


def _check_finite(recent: deque[Tensor], samples_done: int, lr: float) -> None:
    losses = torch.stack(list(recent)).float()
    if not bool(losses.isfinite().all()):
        bad = float(losses[~losses.isfinite()][0])
        raise LossNotFinite(
            f"the training loss became {bad} within {samples_done} samples at learning rate {lr:g}; "
            "a smaller rate or clip_norm may help."
        )


@contextmanager
def _own_random_state(seed: int, device: torch.device) -> Iterator[None]:
    # dropout draws from the global generators, which must be as before afterwards
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(derive_seed(seed, "dropout"))
        if devices:
            torch.cuda.default_generators[device.index or 0].manual_seed(derive_seed(seed, "dropout"))
        yield


@contextmanager
def _eval_mode_after(model: nn.Module) -> Iterator[None]:
    try:
        yield
    finally:
        model.eval()
