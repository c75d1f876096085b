"""Training as long as the base model's: the fair budget of scratch baselines. Liu et al., ICLR 2019, arXiv 1810.05270.

    by epochs (scratch-E):   E = E0
    by compute (scratch-B):  E = floor(E0 * min(rho, cap)),    rho = FLOPs of the base model / FLOPs of the cut model

E0 are the epochs of the base model's training: those of the recipe, unless the study trained its base model itself;
then epochs, optimiser, rates and batch size are those of that training. The rate falls at the same relative positions
whatever the length. A fraction of an epoch is dropped where E0 is whole. The paper's code has no cap on CIFAR and 2 on
ImageNet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from autoprune.budget import PAPER_CAP, budget, scaled
from autoprune.cost import count_flops
from autoprune.fields import choice, real
from autoprune.recovery._base import RecoveryContext, RecoveryCost
from autoprune.recovery._training import _Training
from autoprune.tasks import device_of


@dataclass(frozen=True, kw_only=True)
class Scratch(_Training):
    """Train as the base model was trained, for as many epochs or as much computation."""

    like_base: ClassVar[bool] = True

    by: str = choice("compute", options=("epochs", "compute"), help="what the base model's training is equalled in")
    cap: float = real(
        PAPER_CAP, valid=(1.0, 1000.0), search=(1.5, 2.0), help="times the base model's epochs, at most, by compute"
    )

    def recover(self, model: nn.Module, context: RecoveryContext, epochs: float) -> RecoveryCost:
        """epochs: E0, those of the base model's training. Raises LossNotFinite, OutOfMemory."""
        counts = self.by == "compute" and epochs > 0
        allowed = self._by_compute(model, context, epochs) if counts else epochs
        trained = self._train(model, context, allowed, context.task, None)
        return RecoveryCost(trained_samples=trained, forward_samples=2 if counts else 0)

    def _by_compute(self, model: nn.Module, context: RecoveryContext, epochs: float) -> float:
        base_flops, flops = (self._flops(one, context) for one in (context.teacher, model))
        # a model that was not cut may count a little more than its base, where layers were factorised in vain
        rho = max(1.0, base_flops / flops)
        whole = float(epochs).is_integer()
        return float(budget(epochs, rho, self.cap)) if whole else scaled(epochs, rho, self.cap)

    def _flops(self, model: nn.Module, context: RecoveryContext) -> int:
        inputs = context.data.train.one_sample(device_of(model))
        return count_flops(model, inputs)
