from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from autoprune.recovery.finetune import Finetune
from autoprune.tasks import Task, evaluate


def squares() -> Task:
    return Task(loss=lambda out, y: (out - y).square().mean(), metric=lambda out, y: (out.sum(), len(y)))


def line() -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    return model


def test_one_step_of_plain_gradient_descent(make_context: Any) -> None:
    # w = 1 on x = 1, 2 and y = 0: the loss (w**2 + (2 w)**2) / 2 has the gradient 5, and 1 - 0.1 * 5 = 0.5
    context = make_context(torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1), task=squares())
    model = line()
    Finetune(lr=0.1, momentum=0.0, weight_decay=0.0, schedule="constant").recover(model, context, 1.0)
    assert model.weight.item() == pytest.approx(0.5)


def test_cosine_has_half_the_rate_in_the_middle_of_a_single_step(make_context: Any) -> None:
    context = make_context(torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1), task=squares())
    model = line()
    Finetune(lr=0.1, momentum=0.0, weight_decay=0.0).recover(model, context, 1.0)
    assert model.weight.item() == pytest.approx(0.75)


def test_weight_decay_pulls_towards_zero(make_context: Any) -> None:
    context = make_context(torch.zeros(2, 1), torch.zeros(2, 1), task=squares())
    model = line()
    Finetune(lr=0.1, momentum=0.0, weight_decay=0.5, schedule="constant").recover(model, context, 1.0)
    assert model.weight.item() == pytest.approx(1 - 0.1 * 0.5)


@pytest.mark.parametrize(
    "method", [Finetune(batch_size=16, lr=0.1), Finetune(optimizer="adamw", lr=0.01, batch_size=16)]
)
def test_the_loss_falls(method: Finetune, network: Any, make_context: Any) -> None:
    context, model = make_context(), network()
    before = evaluate(model, context.data.train, context.task).loss
    cost = method.recover(model, context, 8.0)
    assert evaluate(model, context.data.train, context.task).loss < before - 0.1
    assert cost.trained_samples == 400


@pytest.mark.parametrize(("epochs", "samples"), [(0.5, 25), (0.01, 2), (2.04, 102)])
def test_a_part_of_an_epoch_is_exact_to_the_sample(
    epochs: float, samples: int, network: Any, make_context: Any
) -> None:
    assert Finetune(batch_size=8).recover(network(), make_context(), epochs).trained_samples == samples


def test_negative_epochs_are_refused(network: Any, make_context: Any) -> None:
    with pytest.raises(ValueError, match="0 or more, got -1"):
        Finetune().recover(network(), make_context(), -1.0)
