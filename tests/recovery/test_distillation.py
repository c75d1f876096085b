from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from autoprune.errors import NotApplicable
from autoprune.recovery.distillation import Distillation, soft_loss
from autoprune.recovery.finetune import Finetune
from autoprune.tasks import Task


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_loss_by_hand(temperature: float) -> None:
    # the teacher says 3/4 and 1/4 at this temperature, the student 1/2 and 1/2
    teacher = torch.tensor([[temperature * math.log(3.0), 0.0]])
    student = torch.zeros(1, 2, requires_grad=True)
    loss = soft_loss(student, teacher, temperature)
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert loss.item() == pytest.approx(temperature**2 * divergence, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, student)
    # of a cross entropy it is q - p; the factor T ** 2 leaves T of it
    assert gradient.flatten().tolist() == pytest.approx([-0.25 * temperature, 0.25 * temperature], rel=1e-5)


def test_soft_loss_is_a_mean_over_samples_and_positions() -> None:
    draws = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 5, 4, 4, generator=draws)
    every = [
        soft_loss(student[n, :, y, x][None], teacher[n, :, y, x][None], 2.0)
        for n in range(3)
        for y in range(4)
        for x in range(4)
    ]
    assert soft_loss(student, teacher, 2.0).item() == pytest.approx(float(torch.stack(every).mean()), rel=1e-5)


def test_without_weight_it_is_finetuning(network: Any, make_context: Any) -> None:
    distilled, tuned = network(), network()
    Distillation(weight=0.0).recover(distilled, make_context(), 2.0)
    Finetune().recover(tuned, make_context(), 2.0)
    assert all(torch.equal(v, tuned.state_dict()[k]) for k, v in distilled.state_dict().items())


def test_a_student_equal_to_its_teacher_stays(network: Any, make_context: Any) -> None:
    teacher = network(norms=False, dropout=0.0)
    student = network(norms=False, dropout=0.0)
    Distillation(weight=1.0, weight_decay=0.0).recover(student, make_context(teacher=teacher), 1.0)
    for key, value in student.state_dict().items():
        torch.testing.assert_close(value, teacher.state_dict()[key], rtol=0, atol=1e-6)


def test_the_student_comes_closer_to_its_teacher(network: Any, make_context: Any) -> None:
    context, student = make_context(), network()
    inputs = context.data.example_inputs

    def distance() -> float:
        with torch.no_grad():
            return float(soft_loss(student(inputs), context.teacher(inputs), 1.0))

    before = distance()
    Distillation(weight=1.0, lr=0.1, batch_size=10).recover(student, context, 10.0)
    assert distance() < before / 2


def test_the_teacher_is_used_in_eval_mode_and_its_modes_come_back(network: Any, make_context: Any) -> None:
    teacher, modes = network(), []
    teacher.register_forward_pre_hook(lambda module, _: modes.append(any(m.training for m in module.modules())))
    teacher[5].train()
    Distillation().recover(network(), make_context(teacher=teacher), 1.0)
    assert modes == [False]
    assert [m.training for m in teacher] == [False] * 5 + [True, False]


def test_a_task_with_its_own_loss_is_refused(network: Any, make_context: Any) -> None:
    task = Task(loss=lambda out, y: out.mean(), metric=lambda out, y: (0, 1))
    with pytest.raises(NotApplicable, match="the default classification task, or finetune instead"):
        Distillation().recover(network(), make_context(task=task), 1.0)


def test_half_the_weight_is_half_of_each_loss(make_context: Any) -> None:
    student, teacher = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    nn.init.zeros_(student.weight)
    nn.init.eye_(teacher.weight)
    inputs, targets = torch.tensor([[math.log(3.0), 0.0], [0.0, math.log(3.0)]]), torch.tensor([0, 1])
    context = make_context(inputs, targets, teacher=teacher)
    Distillation(weight=0.5, temperature=1.0, lr=1.0, momentum=0.0, weight_decay=0.0, schedule="constant").recover(
        student, context, 1.0
    )
    # gradients of the logits: 1/2 - 1 for the label, 1/2 - 3/4 for the teacher: -3/8, then the mean of 2
    expected = 3 / 8 / 2 * math.log(3.0)
    assert student.weight.flatten().tolist() == pytest.approx([expected, -expected, -expected, expected], rel=1e-5)
