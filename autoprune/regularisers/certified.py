"""Neuron stability and worst logits before a cut. Li et al., TMLR, arXiv 2206.07311, with Gowal et al., ICCV 2019.

    loss = (1 - w) * L(f(x), y) + w * L(worst logits, y) + rho * mean over neurons of -tanh(1 + l * u / gamma ** 2)

See `autoprune.certified.training`. Networks whose ReLUs do not change sign in the box have tight bounds, and pruning
removes the neurons that do. A second cut is trained for anew, as in the paper's rounds.

Departs from the paper: bounds are intervals, where its certified training mixes them with CROWN's; weights go on from
round to round instead of being rewound; the mean is over all neurons, those of ReLUs without batch norm too.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from autoprune.certified.training import CertifiedSettings
from autoprune.fields import real
from autoprune.regularisers._base import Regulariser, RegulariserContext, Shaped
from autoprune.regularisers._training import train_in
from autoprune.training import samples_of


@dataclass(frozen=True, kw_only=True)
class Certified(CertifiedSettings, Regulariser):
    """Train for bounds that stay tight on all inputs near a sample."""

    epochs: float = real(1.0, valid=(0.0, 10000.0), search=(0.25, 4.0), log=True, help="epochs before each cut")

    def shape(self, model: nn.Module, context: RegulariserContext) -> Shaped:
        model.to(context.device)
        if self.epochs == 0:
            model.eval()
            return Shaped(trained_samples=0)
        samples = samples_of(self.epochs, context.data.train)
        loss = self.certified_loss(model, context.data, context.task, samples)
        trained = train_in(context, model, self, samples, loss=loss)
        return Shaped(trained_samples=trained)
