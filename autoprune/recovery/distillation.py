"""Knowledge distillation from the base model. Hinton, Vinyals and Dean 2015, arXiv 1503.02531, section 2.

    loss = (1 - weight) * task loss + weight * T ** 2 * KL(softmax(t / T) || softmax(s / T))

s, t logits of the cut and of the base model for the same augmented batch, T temperature. T ** 2 keeps the
size of the gradients when T changes. KL is summed over the classes (axis 1) and averaged over samples and
positions. The task loss is that of the hard labels; for classification it is cross entropy.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoprune.errors import NotApplicable
from autoprune.fields import real
from autoprune.recovery._base import RecoveryContext, RecoveryCost
from autoprune.recovery._training import _Training
from autoprune.tasks import Task, device_of, eval_mode, forward, logits_of
from autoprune.training import ModelLoss


@dataclass(frozen=True, kw_only=True)
class Distillation(_Training):
    """Train the cut model on the task and on the base model's outputs."""

    weight: float = real(0.5, valid=(0.0, 1.0), search=(0.2, 0.95), help="of the base model's outputs in the loss")
    temperature: float = real(
        4.0, valid=(0.1, 100.0), search=(1.0, 8.0), log=True, help="divides the logits of both models"
    )

    def recover(self, model: nn.Module, context: RecoveryContext, epochs: float) -> RecoveryCost:
        """Every sample counts as trained and, for the teacher, as forward.

        Raises NotApplicable when the task is no classification, LossNotFinite, OutOfMemory.
        """
        if not context.task.classification:
            raise NotApplicable(
                "distillation compares class probabilities, but the task has a loss and metric of its own. "
                "Use it with the default classification task, or finetune instead"
            )
        teacher = context.teacher
        if device_of(teacher) != context.device:
            teacher = copy.deepcopy(teacher).to(context.device)
        with eval_mode(teacher):
            loss = self._loss(teacher, context.task)
            samples = self._train(model, context, epochs, context.task, loss)
        return RecoveryCost(trained_samples=samples, forward_samples=samples)

    def _loss(self, teacher: nn.Module, task: Task) -> ModelLoss:
        def loss(model: nn.Module, inputs: Any, targets: Any) -> Tensor:
            output = forward(model, inputs)
            with torch.no_grad():
                wanted = logits_of(forward(teacher, inputs))
            soft = soft_loss(logits_of(output), wanted, self.temperature)
            return (1 - self.weight) * task.loss(output, targets) + self.weight * soft

        return loss


def soft_loss(student_NC: Tensor, teacher_NC: Tensor, temperature: float) -> Tensor:
    """Return temperature ** 2 * KL(teacher || student) of logits (N, C, ...), a mean over all axes but C."""
    student = functional.log_softmax(student_NC.float() / temperature, dim=1)
    teacher = functional.log_softmax(teacher_NC.float() / temperature, dim=1)
    divergence_NC = functional.kl_div(student, teacher, reduction="none", log_target=True)
    return temperature**2 * divergence_NC.sum(dim=1).mean()
