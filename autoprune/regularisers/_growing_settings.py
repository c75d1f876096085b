"""What the growing penalties share: their hyperparameters and the training."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from autoprune.fields import choice, integer, real
from autoprune.regularisers._base import Regulariser, RegulariserContext, Shaped
from autoprune.regularisers._growing import Growth, Pick
from autoprune.specs import RateSchedule
from autoprune.training_settings import TrainingSettings


@dataclass(frozen=True, kw_only=True)
class _Growing(TrainingSettings, Regulariser):
    """Hyperparameters of a penalty that grows. How long it trains follows from them."""

    lr: float = real(0.001, valid=(1e-7, 10.0), search=(1e-4, 1e-2), log=True, help="learning rate")
    schedule: RateSchedule = choice(  # noqa: RUF009 - a literal behind an alias
        "constant", options=("constant",), help="the rate stays: the end of the training is not known beforehand"
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
        samples = self.train(
            model,
            context.data.train,
            growth.most_steps * self.batch_size,
            task=context.task,
            seed=context.seed,
            device=context.device,
            mixed_precision=context.mixed_precision,
            on_gradients=growth.on_gradients,
            enough=growth.enough,
        )
        return Shaped(trained_samples=samples, as_chosen=True)
