"""Growing penalty on all units, then on those that shrank most. Wang et al., ICLR 2021 (GReg-2), arXiv 2012.09243.

    pick: reg_C[c] += pick_growth for all units, until pick_ceiling; then the recipe chooses the units that go
    push: reg_C[c] += growth for the units that go, reg_C[c] = recover for those that stay

Under the same penalty weights shrink more where the loss is flat, h / (h + reg) of their value for a curvature h, so
that magnitudes chosen from then tell of curvature. A group is finished when its own ratio reaches `ratio_limit` or its
penalty exceeds `ceiling`. A negative `recover` takes back the weight decay of what stays. Otherwise as `greg_1`.

Departs from the paper as `greg_1` does.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from autoprune.fields import choice, real
from autoprune.regularisers._base import RegulariserContext, Shaped
from autoprune.regularisers._growing import Pick
from autoprune.regularisers._growing_settings import _Growing


@dataclass(frozen=True, kw_only=True)
class Greg2(_Growing):
    """Let curvature show in the weights, choose, and shrink what goes."""

    pick_growth: float = real(
        1e-5, valid=(1e-9, 10.0), search=(1e-6, 1e-3), log=True, help="penalty added to all units before the choice"
    )
    pick_ceiling: float = real(
        0.01, valid=(1e-9, 100.0), search=(1e-3, 1e-1), log=True, help="penalty at which units are chosen"
    )
    recover: float = choice(-1e-4, options=(-1e-4, 0.0), help="penalty of the units that stay, after the choice")

    def shape(self, model: nn.Module, context: RegulariserContext) -> Shaped:
        pick = Pick(growth=self.pick_growth, ceiling=self.pick_ceiling, recover=self.recover)
        return self._shape(model, context, pick)
