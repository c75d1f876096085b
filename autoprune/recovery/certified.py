"""Finetuning that keeps bounds tight. Gowal et al., ICCV 2019, arXiv 1810.12715, with the neuron stability of Li et al.

    loss = (1 - w) * L(f(x), y) + w * L(worst logits, y) + rho * mean over neurons of -tanh(1 + l * u / gamma ** 2)

See `autoprune.certified.training`. Ordinary finetuning after a certified training widens the bounds again within a few
epochs; this goes on as it was. Li et al., TMLR, arXiv 2206.07311, train their pruned networks so.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from autoprune.certified.training import CertifiedSettings
from autoprune.recovery._base import RecoveryContext, RecoveryCost
from autoprune.recovery._training import _Training
from autoprune.training import samples_of


@dataclass(frozen=True, kw_only=True)
class Certified(CertifiedSettings, _Training):
    """Train the cut model for bounds that stay tight on all inputs near a sample."""

    def recover(self, model: nn.Module, context: RecoveryContext, epochs: float) -> RecoveryCost:
        """Raises NotApplicable for a network or task without bounds, LossNotFinite, OutOfMemory."""
        loss = None
        if epochs > 0:
            model.to(context.device)
            samples = samples_of(epochs, context.data.train)
            loss = self.certified_loss(model, context.data, context.task, samples)
        return RecoveryCost(trained_samples=self._train(model, context, epochs, context.task, loss))
