"""Training that keeps bounds tight: the worst logits of the box in the loss, and stable neurons.

    loss = (1 - w) * L(f(x), y) + w * L(worst logits, y) + rho * NRS,
    worst logit k = upper bound of z_k - z_y on the box,        NRS = mean over neurons of -tanh(1 + l * u / gamma ** 2)

Worst logits: Gowal et al., ICCV 2019, arXiv 1810.12715. NRS: Li et al., TMLR, arXiv 2206.07311; l and u bound what
a ReLU reads, gamma, which gets no gradient, is the scale of the batch norm before it (1 without one). The radius and w
rise from 0 to epsilon and `worst_weight` over the first `ramp` of a training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.certified.bounds import Bounded, PreActivation
from autoprune.certified.box import box_around, only_tensor
from autoprune.data import Data
from autoprune.errors import NotApplicable
from autoprune.fields import choice, real
from autoprune.tasks import Task, forward
from autoprune.training import ModelLoss, steps_for
from autoprune.training_settings import TrainingSettings

_SMALL = 1e-8


@dataclass(frozen=True, kw_only=True)
class CertifiedSettings(TrainingSettings):
    """Hyperparameters of a training that keeps bounds tight."""

    epsilon: float = real(
        0.03,
        valid=(0.0, 10.0),
        search=(0.01, 0.1),
        log=True,
        help="half-width of the box in every pixel, of values in 0 to 1 where the data is images",
    )
    rho: float = real(0.01, valid=(0.0, 100.0), search=(1e-4, 1e-1), log=True, help="weight of neuron stability")
    gamma_pow: int = choice(2, options=(0, 2), help="exponent of the batch norm's scale; 0 leaves it out")
    worst_weight: float = real(
        0.5, valid=(0.0, 1.0), search=(0.2, 0.8), help="of the worst logits in the loss at the end"
    )
    ramp: float = real(
        0.5, valid=(0.0, 1.0), search=(0.2, 0.8), help="part of a training over which radius and weight rise"
    )

    @property
    def certified_at(self) -> float | None:
        """The epsilon at which what comes out is to be certified."""
        return self.epsilon

    def certified_loss(self, model: nn.Module, data: Data, task: Task, samples: int) -> ModelLoss:
        """Return the loss of a training of so many samples. Raises NotApplicable."""
        if not task.classification:
            raise NotApplicable("worst logits are those of classes, but the task has a loss and metric of its own")
        bounded = Bounded(model, data.example_inputs.to(next(model.parameters()).device))
        steps, done = steps_for(samples, self.batch_size), 0

        def loss(model: nn.Module, inputs: Any, targets: Any) -> Tensor:
            nonlocal done
            part = min(1.0, done / max(1.0, self.ramp * steps))
            done += 1
            plain = task.loss(forward(model, inputs), targets)
            with torch.autocast(only_tensor(inputs).device.type, enabled=False):
                bounds = bounded.on(box_around(inputs, part * self.epsilon, data.pixels))
                worst = task.loss(-bounds.margins(targets), targets)
                unstable = instability(bounds.pre_activations, self.gamma_pow)
            weight = part * self.worst_weight
            return (1 - weight) * plain + weight * worst + self.rho * unstable

        return loss


def instability(pre_activations: Sequence[PreActivation], gamma_pow: int = 2) -> Tensor:
    """Return the mean over all neurons of -tanh(1 + l * u / gamma ** gamma_pow): -0.76 or less where they are stable.

    Raises NotApplicable without a ReLU.
    """
    if not pre_activations:
        raise NotApplicable("neuron stability is about ReLUs, and the network has none")
    total, count = torch.zeros(()), 0
    for read in pre_activations:
        product = read.interval.low * read.interval.high
        if read.scale is not None and gamma_pow:
            shape = (1, -1, *(1 for _ in range(product.ndim - 2)))
            product = product / (read.scale.abs() ** gamma_pow + _SMALL).view(shape)
        total, count = total - torch.tanh(1 + product).sum(), count + product.numel()
    return total / count
