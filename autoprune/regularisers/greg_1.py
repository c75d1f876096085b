"""Growing penalty on the units that will go. Wang et al., ICLR 2021 (GReg-1), arXiv 2012.09243.

    every `every` steps: reg_C[c] += growth for the units c that go;    gradient of their weights w += reg_C[c] * w

The recipe's criterion, allocation and target choose the units once, from the weights before the training; they are cut
when it ends, whatever scores would say then. A group is finished when its penalty exceeds `ceiling`, or when in all
groups what stays is `ratio_limit` times as large as what goes; `stabilise` steps follow. Penalised are the weights that
produce a unit, in every layer that writes it; weight decay acts on top.

Departs from the paper: whole units with all layers that write a residual stream, which the authors leave uncut; the
share of each layer is the recipe's. The authors grow by 1e-4 over 1e5 steps; small budgets want larger steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from autoprune.regularisers._base import RegulariserContext, Shaped
from autoprune.regularisers._growing_settings import _Growing


@dataclass(frozen=True, kw_only=True)
class Greg1(_Growing):
    """Shrink the units chosen to go until their removal changes little."""

    def shape(self, model: nn.Module, context: RegulariserContext) -> Shaped:
        return self._shape(model, context, None)
