"""Cut a little, train a little, score again. Li et al., ICLR 2017, arXiv 1608.08710, section 3.4.

Step i of n ends at `progress` i / n of the way from the base model's cost to the target. After every step but the last
the model trains for `epochs_between`; scores are taken anew from the smaller model before each step.
"""

from __future__ import annotations

from dataclasses import dataclass

from autoprune.fields import integer, real
from autoprune.schedules._base import Schedule, Step


@dataclass(frozen=True, kw_only=True)
class Iterative(Schedule):
    """Cut to the target in equal steps of cost, with training between them."""

    count: int = integer(3, valid=(1, 100), search=(2, 6), help="number of cuts")
    epochs_between: float = real(0.1, valid=(0, 1000), search=(0.05, 0.5), log=True, help="epochs after a cut")

    def steps(self) -> tuple[Step, ...]:
        last = self.count
        return tuple(
            Step(progress=i / last, epochs=self.epochs_between if i < last else 0.0) for i in range(1, last + 1)
        )
