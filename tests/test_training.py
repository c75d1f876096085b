from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoprune.data import TensorSplit
from autoprune.errors import LossNotFinite, OutOfMemory
from autoprune.fields import hyperparameters
from autoprune.tasks import classification
from autoprune.training import StepHook, TrainingReport, out_of_memory_fails, train
from autoprune.training_settings import TrainingSettings

SETTINGS = hyperparameters(TrainingSettings)


def split(count: int = 40) -> TensorSplit:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 4, generator=generator)
    return TensorSplit(inputs, (inputs[:, 0] > 0).long())


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 2))


def run(model: nn.Module, **changes: Any) -> TrainingReport:
    given = {"batch_size": 16, "lr": 0.1} | {k: v for k, v in changes.items() if k in SETTINGS}
    rest: dict[str, Any] = {"task": classification(), "samples": 100, "seed": 0}
    rest |= {k: v for k, v in changes.items() if k not in SETTINGS}
    return train(model, split(), TrainingSettings(**given), **rest)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_learns_and_reports(optimizer: str) -> None:
    model, losses = network(), []
    report = run(model, samples=800, optimizer=optimizer, lr=0.05, on_step=lambda n, loss: losses.append((n, loss)))
    assert report.samples == losses[-1][0] == 800
    assert report.steps == len(losses) == 50
    assert report.mean_loss_last == pytest.approx(sum(loss for _, loss in losses[-20:]) / 20, rel=1e-5)
    assert report.mean_loss_last < 0.5 * losses[0][1]
    assert not any(module.training for module in model.modules())


def test_training_draws_exactly_the_samples_asked_for() -> None:
    sizes: list[int] = []

    def loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        sizes.append(len(inputs))
        return model(inputs).square().mean()

    assert run(network(), samples=49, loss=loss).samples == 49
    assert sizes == [16, 16, 17]


def test_the_same_seed_trains_the_same_and_touches_no_global_randomness() -> None:
    models = [network() for _ in range(3)]
    torch.manual_seed(7)
    before = torch.get_rng_state()
    for model, seed in zip(models, (1, 1, 2), strict=True):
        run(model, seed=seed)
    assert torch.equal(torch.get_rng_state(), before)
    weights = [model[0].weight for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def rates(**changes: Any) -> list[float]:
    """Plain SGD on loss = sum(w) moves w by minus the rate: read the rates off."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    seen = [0.0]
    run(
        model,
        loss=lambda m, i, t: m.weight.sum(),
        momentum=0.0,
        weight_decay=0.0,
        on_step=lambda n, loss: seen.append(float(model.weight.detach())),
        samples=64,
        lr=1.0,
        **changes,
    )
    return [before - after for before, after in pairwise(seen)]


def test_schedules_follow_their_formula() -> None:
    assert rates(schedule="constant") == pytest.approx([1.0] * 4)
    # half a cosine at the middle of each quarter
    assert rates(schedule="cosine") == pytest.approx([0.961940, 0.691342, 0.308658, 0.038060], abs=1e-5)
    # quarters at 1/8 and 3/8 of the way: a quarter and three quarters of the rise
    assert rates(schedule="constant", warmup_fraction=0.5) == pytest.approx([0.25, 0.75, 1.0, 1.0])
    assert rates(schedule="step") == pytest.approx([1.0, 1.0, 0.1, 0.01])
    assert rates(schedule="step", milestones=(0.2,)) == pytest.approx([1.0, 0.1, 0.1, 0.1])
    assert rates(schedule="step", warmup_fraction=0.25, milestones=(0.5,)) == pytest.approx([0.5, 1.0, 0.1, 0.1])


def test_gradients_can_be_changed_before_they_are_clipped_and_used() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)

    class Tenfold(StepHook):
        def before_step(self, step: int) -> bool:
            model.weight.grad.mul_(10)  # type: ignore[union-attr]
            return False

    settings = {"momentum": 0.0, "weight_decay": 0.0, "samples": 16, "lr": 0.1, "schedule": "constant"}
    run(model, loss=lambda m, i, t: m.weight.sum(), hook=Tenfold(), **settings)
    assert float(model.weight.detach()) == pytest.approx(-1.0)
    run(model, loss=lambda m, i, t: m.weight.sum(), hook=Tenfold(), clip_norm=5.0, **settings)
    assert float(model.weight.detach()) == pytest.approx(-1.5)


def test_training_stops_when_it_was_enough() -> None:
    class Twice(StepHook):
        steps: tuple[int, ...] = ()

        def after_step(self, step: int) -> None:
            self.steps = (*self.steps, step)

        def enough(self) -> bool:
            return len(self.steps) == 2

    hook = Twice()
    report = run(network(), hook=hook)
    assert report.samples == 32
    assert hook.steps == (0, 1)
    assert report.steps == 2


def test_biases_and_norms_do_not_decay_unless_asked() -> None:
    def after(decay_all: bool) -> tuple[float, float]:
        model = nn.Linear(4, 2)
        nn.init.ones_(model.weight)
        nn.init.ones_(model.bias)
        zero = lambda m, i, t: 0.0 * m.weight.sum() + 0.0 * m.bias.sum()  # noqa: E731
        run(
            model,
            loss=zero,
            weight_decay=0.5,
            momentum=0.0,
            samples=16,
            schedule="constant",
            decay_all=decay_all,
        )
        return float(model.weight[0, 0].detach()), float(model.bias[0].detach())

    assert after(False) == pytest.approx((0.95, 1.0))
    assert after(True) == pytest.approx((0.95, 0.95))


def test_frozen_parameters_stay() -> None:
    model = network()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    run(model)
    assert torch.equal(model[0].weight, before)


def test_clipping_bounds_the_step() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    settings = {"momentum": 0.0, "weight_decay": 0.0, "samples": 16, "lr": 1.0, "schedule": "constant"}
    run(model, loss=lambda m, i, t: 100.0 * m.weight.sum(), clip_norm=0.5, **settings)
    assert float(model.weight.detach()) == pytest.approx(-0.5, rel=1e-4)


def test_a_loss_that_is_not_finite_fails_the_trial_and_leaves_eval_mode() -> None:
    model = network()
    with pytest.raises(LossNotFinite, match="the training loss became nan within 100 samples at learning rate"):
        run(model, loss=lambda m, i, t: m(i).sum() * float("nan"))
    assert not model.training


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    ],
)
def test_running_out_of_memory_fails_the_trial(error: Exception) -> None:
    def loss(model: nn.Module, inputs: Any, targets: Any) -> Tensor:
        raise error

    with pytest.raises(OutOfMemory, match="training ran out of memory; a smaller batch_size needs less"):
        run(network(), loss=loss)


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes"), out_of_memory_fails("x"):
        raise RuntimeError("shapes differ")


def test_a_deadline_stops_after_the_step() -> None:
    assert run(network(), deadline=time.monotonic() - 1).samples == 16


def test_mixed_precision_trains_float32_weights() -> None:
    model = network()
    assert run(model, samples=800, mixed_precision=True).mean_loss_last < 0.5
    assert model[0].weight.dtype == torch.float32
