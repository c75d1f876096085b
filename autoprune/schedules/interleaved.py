"""Few units at a time, between short pieces of training. Molchanov et al. 2017 and 2019, arXiv 1611.06440, 1906.10771.

Step i of n ends at `progress` i / n of the way from the base model's cost to the target. After every step but the last
the model trains on `samples_between` samples: the papers' updates times the batch size. Scores are taken anew before
each step and smoothed over the steps, per unit that is left:

    S_bar = S at the first step,    S_bar = momentum * S_bar_before + (1 - momentum) * S afterwards

Departs from the papers: they remove a number of units per step, here each step removes the same share of the cost, so
that the last one ends at the target; scores come from samples of their own, not from the batches trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

from autoprune.fields import integer, real
from autoprune.schedules._base import Schedule, Step


@dataclass(frozen=True, kw_only=True)
class Interleaved(Schedule):
    """Cut to the target in many small steps with a few updates of the weights between them."""

    count: int = integer(20, valid=(1, 10_000), search=(8, 40), log=True, help="number of cuts")
    samples_between: int = integer(
        960, valid=(2, 10_000_000), search=(256, 8192), log=True, help="training samples after a cut"
    )
    momentum: float = real(0.0, valid=(0.0, 0.999), search=(0.0, 0.9), help="weight of the scores before a cut")

    def steps(self) -> tuple[Step, ...]:
        last = self.count
        return tuple(
            Step(
                progress=i / last,
                epochs=0.0,
                samples=self.samples_between if i < last else 0,
                momentum=self.momentum,
            )
            for i in range(1, last + 1)
        )
