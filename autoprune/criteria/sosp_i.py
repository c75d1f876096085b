"""Second order with all pairs of units, greedily. Nonnenmacher et al., ICLR 2022, arXiv 2110.11395.

    Q_UU[s, t] = |theta_s . R . theta_t| / 2
    cost_U[s] = |theta_s . g| + Q_UU[s, s] + 2 * sum over t removed before of Q_UU[s, t]
    score_C[c] = cost of unit c at the moment it is the cheapest of those left

U all units of all groups, C those of the group, theta_s the weights and biases that produce unit s, g the gradient and
R the Gauss-Newton Hessian of the mean loss in eval mode. Unit: loss. Costs only rise while units go, so that the scores
have the order of removal; they are compared between groups without normalisation. A pair of units that act alike is
dear to remove together. That the minimiser is greedy is our reading.

The members of a residual stream or a depthwise chain are one unit. Costs one backward pass for every sample and output,
on at most 256 samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoprune.criteria._base import Criterion
from autoprune.errors import NotApplicable
from autoprune.evidence import Evidence, ModelEvidence
from autoprune.graph import Group, Role

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SospI(Criterion):
    """Remove, one by one, the unit that raises the bound of the loss change least."""

    needs: ClassVar[frozenset[str]] = frozenset({Evidence.GAUSS_NEWTON})

    def score(self, group: Group, evidence: ModelEvidence) -> Tensor:
        if not group.places_with(Role.OUTPUT, Role.DEPTHWISE):
            raise NotApplicable(f"sosp_i needs weights that produce the units; group {group.name!r} has none")
        gradient_U, matrix_UU = evidence.gauss_newton()
        cost_U = greedy_costs(gradient_U.abs().cpu().numpy(), matrix_UU.abs().cpu().numpy() / 2)
        structure = evidence.structure
        first = int(structure.offsets[structure.names.index(group.name)])
        return torch.tensor(cost_U[first : first + group.size], device=gradient_U.device)


def greedy_costs(single_U: FloatArray, pair_UU: FloatArray) -> FloatArray:
    """Return what each unit costs when it is removed, (U,), the cheapest first; ties by index."""
    cost_U = single_U + np.diagonal(pair_UU)
    paid_U = np.zeros_like(cost_U)
    for _ in range(len(cost_U)):
        cheapest = int(np.argmin(cost_U))
        paid_U[cheapest] = cost_U[cheapest]
        cost_U = cost_U + 2 * pair_UU[:, cheapest]
        cost_U[cheapest] = np.inf
    return paid_U
