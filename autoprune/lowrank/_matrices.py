"""Weights seen as matrices, and their nearest matrices of low rank.

Axes of tensors: O output channels, I input channels, K kernel positions, R rank, M and N rows and columns.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from autoprune.errors import TrialFailed

Axes = tuple[bool, ...]
"""For each kernel axis, whether the first of the two factors takes it; empty for a linear layer."""


def truncated_svd(matrix_MN: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return factors (M, R) and (R, N), float32 or float64, whose product is the nearest matrix of that rank.

    By Eckart and Young 1936 the squared Frobenius error is the sum of the squared singular values left out.
    Each factor has the square roots of the singular values, so that weight decay acts on both alike.
    Raises ValueError for a rank above that of such a matrix, TrialFailed when an entry is NaN or infinite.
    """
    if rank > min(matrix_MN.shape):
        raise ValueError(f"a {tuple(matrix_MN.shape)} matrix has at most rank {min(matrix_MN.shape)}, got {rank}")
    check_finite(matrix_MN)
    precise = torch.promote_types(matrix_MN.dtype, torch.float32)
    U_MK, S_K, V_KN = torch.linalg.svd(matrix_MN.to(precise), full_matrices=False)
    root_R = S_K[:rank].sqrt()
    return U_MK[:, :rank] * root_R, root_R[:, None] * V_KN[:rank]


def check_finite(values: Tensor, what: str = "weights") -> None:
    """Raises TrialFailed when an entry is NaN or infinite."""
    if not values.isfinite().all():
        raise TrialFailed(f"a layer to factorise has {what} that are NaN or infinite")


def kept_shares(energy_K: Tensor) -> Tensor:
    """Return the shares (K,) of all energy that the first 1 to K parts hold; ones where there is none."""
    sums_K = energy_K.clamp_min(0).cumsum(0)
    return sums_K / sums_K[-1] if float(sums_K[-1]) > 0 else torch.ones_like(sums_K)


def as_matrix(weight_OIK: Tensor, axes: Axes) -> Tensor:
    """Return a weight (O, I, *kernel) as a matrix (M, N).

    Rows are I and the kernel axes of the first factor, columns are O and the kernel axes of the second.
    """
    first = [2 + a for a, taken in enumerate(axes) if taken]
    second = [2 + a for a, taken in enumerate(axes) if not taken]
    ordered = weight_OIK.permute(1, *first, 0, *second)
    return ordered.reshape(math.prod(ordered.shape[: 1 + len(first)]), -1)


def as_weights(left_MR: Tensor, right_RN: Tensor, shape: tuple[int, ...], axes: Axes) -> tuple[Tensor, Tensor]:
    """Return the factors of `as_matrix` as weights (R, I, *kernel 1) and (O, R, *kernel 2) of two layers.

    `shape` is that of the factorised weight, (O, I, *kernel).
    """
    o, i, *kernel = shape
    kernel_1, kernel_2 = split_axes(tuple(kernel), axes, neutral=1)
    first_RIK = left_MR.T.reshape(-1, i, *kernel_1)
    second_ORK = right_RN.reshape(-1, o, *kernel_2).transpose(0, 1)
    return first_RIK, second_ORK


def split_axes(values: tuple[int, ...], axes: Axes, *, neutral: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Give each value to the factor that takes its axis, and the neutral one to the other factor."""
    pairs = list(zip(values, axes, strict=True))
    return tuple(v if f else neutral for v, f in pairs), tuple(neutral if f else v for v, f in pairs)
