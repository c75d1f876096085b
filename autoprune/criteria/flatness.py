"""Change of the loss, less what removal gains in flatness. Ebrahimi and Klabjan, IJCNN 2023, arXiv 2111.08577.

    score_j = change_j / loss - alpha * gain_j / (sum over layers of rho),    rho = lmax(A) * lmax(G)

change_j is the second-order change of the mean loss without unit j, first-order term included, since training need not
be at a minimum (`autoprune.evidence.kronecker`). A and G are the Kronecker factors of a layer's curvature and rho its
spectral radius. Without unit j the layers that write it lose a row of G and those that read it a block of A; by
interlacing neither eigenvalue can rise, and gain_j is by how much the radii fall, summed over those layers. Without a
block of the top eigenvector u the eigenvalue is at least the Rayleigh quotient of the rest of u,

    (lambda (1 - 2 |u_B|^2) + u_B^T A_BB u_B) / (1 - |u_B|^2)

which is what is taken while |u_B|^2 <= 0.5, and the exact eigenvalue beyond. Scores have no unit; lower goes first, in
one ranking (`allocation: global`, `normalisation: none`).

Only the paper's abstract was available: neurons, curvature by Kronecker factors, the spectral radius and pruning while
training come first-hand, the formulas are our reading. Units of several layers (residual streams) sum over them.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from autoprune.criteria._base import Criterion
from autoprune.evidence import Evidence, ModelEvidence
from autoprune.fields import real
from autoprune.graph import Group, Place, Role

_MOST_MASS = 0.5


@dataclass(frozen=True, kw_only=True)
class Flatness(Criterion):
    """Remove what the loss hardly misses and what makes its minimum sharp."""

    needs: ClassVar[frozenset[str]] = frozenset({Evidence.KRONECKER, Evidence.INPUT_MOMENTS})

    alpha: float = real(1.0, valid=(0.0, 1000.0), search=(0.0, 10.0), help="weight of the gain in flatness")

    def score(self, group: Group, evidence: ModelEvidence) -> Tensor:
        change_C, loss = evidence.removal_changes(group)
        score_C: Tensor = change_C / max(loss, torch.finfo(torch.float64).tiny)
        if self.alpha == 0:
            return score_C
        radii = sum(float(_top(evidence, layer.name).prod()) for layer in evidence.structure.layers)
        gain_C = torch.zeros_like(score_C)
        for place in group.places_with(Role.OUTPUT, Role.INPUT):
            gain_C = gain_C + _gain(evidence, place)
        scaled_C: Tensor = score_C - self.alpha * gain_C / radii if radii > 0 else score_C
        return scaled_C


def _gain(evidence: ModelEvidence, place: Place) -> Tensor:
    """Return (C,) by how much the spectral radius of one layer falls without each unit; () where that is unknown."""
    factors, indices_CK = evidence.curvature(place.module), torch.tensor(place.indices)
    if factors is None:
        return torch.zeros(())
    top_2 = _top(evidence, place.module)
    if place.role == Role.OUTPUT:
        return top_2[0] * fall(factors[1], indices_CK)
    layer = next(one for one in evidence.structure.layers if one.name == place.module)
    kernel = math.prod(layer.kernel)
    block_CK = (indices_CK[:, :, None] * kernel + torch.arange(kernel)).flatten(1)
    return top_2[1] * fall(factors[0], block_CK)


def _top(evidence: ModelEvidence, layer: str) -> Tensor:
    """Return (2,) the largest eigenvalues of a layer's factors, zeros where it has none."""

    def compute(layer: str) -> Tensor:
        factors = evidence.curvature(layer)
        if factors is None:
            return torch.zeros(2, dtype=torch.float64)
        return torch.stack([torch.linalg.eigvalsh(factor)[-1] for factor in factors]).clamp_min(0)

    return evidence.remember(f"flatness/{layer}", functools.partial(compute, layer))


def fall(matrix_MM: Tensor, blocks_CK: Tensor) -> Tensor:
    """Return (C,) by how much lmax of a positive semidefinite matrix falls without the rows and columns of each block.

    A bound from above where the top eigenvector has at most half of its mass in the block, exact beyond.
    """
    values, vectors = torch.linalg.eigh(matrix_MM)
    top, u_M = values[-1].clamp_min(0), vectors[:, -1]
    u_CK = u_M[blocks_CK]
    mass_C = u_CK.square().sum(dim=1)
    inner_CKK = matrix_MM[blocks_CK[:, :, None], blocks_CK[:, None, :]]
    inside_C = torch.einsum("ck,ckl,cl->c", u_CK, inner_CKK, u_CK)
    left_C = (top * (1 - 2 * mass_C) + inside_C) / (1 - mass_C).clamp_min(_MOST_MASS / 2)
    for c in (mass_C > _MOST_MASS).nonzero().flatten().tolist():
        rest = torch.ones(len(matrix_MM), dtype=torch.bool)
        rest[blocks_CK[c]] = False
        left_C[c] = torch.linalg.eigvalsh(matrix_MM[rest][:, rest])[-1] if rest.any() else 0.0
    fallen_C: Tensor = (top - left_C).clamp_min(0)
    return fallen_C
