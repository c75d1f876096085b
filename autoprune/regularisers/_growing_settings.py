"""What the growing penalties share: their hyperparameters and the training."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from autoprune.fields import again, integer, real
from autoprune.regularisers._base import Regulariser, RegulariserContext, Shaped
from autoprune.regularisers._growing import Growth, Pick
from autoprune.regularisers._training import train_in
from autoprune.training_settings import RateSchedule, TrainingSettings


@dataclass(frozen=True, kw_only=True)
class _Growing(TrainingSettings, Regulariser):
    """Hyperparameters of a penalty that grows. How long it trains follows from them."""

    lr: float = again(TrainingSettings, "lr", default=0.001, search=(1e-4, 1e-2))
    schedule: RateSchedule = again(  # noqa: RUF009 - a literal behind an alias
        TrainingSettings,
        "schedule",
        default="constant",
        options=("constant",),
        search=("constant",),
        help="the rate stays: the end of the training is not known beforehand",
    )
    growth: float = real(
        1e-4, valid=(1e-8, 100.0), search=(1e-4, 1e-1), log=True, help="penalty added to the units to go, each time"
    )
    every: int = integer(10, valid=(1, 100_000), search=(1, 20), help="steps between two such additions")
    ceiling: float = real(1.0, valid=(1e-8, 1000.0), search=(0.1, 10.0), log=True, help="penalty above which it stops")
    ratio_limit: float = real(
        1000.0,
        valid=(1.0, 1e12),
        search=(10.0, 1e4),
        log=True,
        help="size of what stays over what goes at which it stops",
    )
    stabilise: int = integer(
        10_000, valid=(0, 10_000_000), search=(100, 40_000), log=True, help="further steps with the penalty as it is"
    )

    def _shape(self, model: nn.Module, context: RegulariserContext, pick: Pick | None) -> Shaped:
        growth = Growth(
            model.to(context.device).eval(),
            context.structure,
            context.choose,
            growth=self.growth,
            every=self.every,
            ceiling=self.ceiling,
            ratio_limit=self.ratio_limit,
            stabilise=self.stabilise,
            pick=pick,
        )
        if not growth.groups:
            return Shaped(trained_samples=0, as_chosen=True)
        trained = train_in(context, model, self, growth.most_steps * self.batch_size, hook=growth)
        return Shaped(trained_samples=trained, as_chosen=True)
