"""Factors that reproduce a layer's outputs on data.

A layer with weight W (O, M) reads rows x (M) with spread S = E[x x^T] (M, M). A pair computes W~ x, and its error is

    E || W x - W~ x || ** 2 = trace((W - W~) S (W - W~)^T)

Matrices here are W^T (M, N), as `as_matrix` has them. Axes: M rows, N = O columns, R rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autoprune.lowrank._matrices import check_finite

_LEAST_EIGENVALUE = 1e-9
"""Relative to the largest; what the first layer gives out less of than this is no ground for a correction."""


def spread_of(mean_M: Tensor, second_MM: Tensor, *, centre: bool) -> Tensor:
    """Return the spread of rows around zero, or around their mean. Raises TrialFailed when it is not finite."""
    check_finite(second_MM, "inputs")
    return second_MM - torch.outer(mean_M, mean_M) if centre else second_MM


def response_energy(matrix_MN: Tensor, spread_MM: Tensor) -> tuple[Tensor, Tensor]:
    """Return energies (N,), falling, and orthonormal directions (N, N), in columns, of a layer's outputs."""
    energy_N, directions_NN = torch.linalg.eigh(matrix_MN.T @ spread_MM @ matrix_MN)
    return energy_N.flip(0), directions_NN.flip(1)


def best_factors(matrix_MN: Tensor, spread_MM: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return factors (M, R) and (R, N) of least error: outputs projected on the R directions of most energy.

    The error is the energy of the other directions. Needs no inverse, so that inputs without variance do no harm.
    """
    _, directions_NN = response_energy(matrix_MN, spread_MM)
    directions_NR = directions_NN[:, :rank]
    left_MR, right_RN = matrix_MN @ directions_NR, directions_NR.T
    # both factors alike, so that weight decay acts on both alike
    root_R = left_MR.norm(dim=0).clamp_min(torch.finfo(left_MR.dtype).tiny).sqrt()
    return left_MR / root_R, right_RN * root_R[:, None]


def refitted(matrix_MN: Tensor, spread_MM: Tensor, given_MP: Tensor, start_PN: Tensor) -> Tensor:
    """Return the second factor (P, N) of least error behind a given first one (M, P), found from `start_PN`.

    By least squares, and along the directions with variance only, so that the error never grows.
    """
    mixed_MP = spread_MM @ given_MP
    values_P, vectors_PP = torch.linalg.eigh(given_MP.T @ mixed_MP)
    used_P = values_P > _LEAST_EIGENVALUE * values_P[-1].clamp_min(0)
    inverse_P = torch.where(used_P, 1 / torch.where(used_P, values_P, 1.0), 0.0)
    missed_PN = mixed_MP.T @ (matrix_MN - given_MP @ start_PN)
    change_PN: Tensor = vectors_PP @ (inverse_P[:, None] * (vectors_PP.T @ missed_PN))
    return start_PN + change_PN
