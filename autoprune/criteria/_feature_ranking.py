"""Unsupervised feature ranking: Inf-FS. Roffo et al., "Infinite Feature Selection", ICCV 2015.

Of features X (N, D), with rho the absolute Spearman correlations and sd the standard deviations:

    E_ij = max(sd_i, sd_j), scaled to [0, 1] over the matrix,    A = alpha E + (1 - alpha)(1 - rho)
    r = damping / spectral radius of A,                          s = (I - r A)^-1 1 - 1

s sums the weights of all paths of any length that begin at a feature. Features that never change have rows and columns
of zeros in A, and so score 0, where the authors' toolbox takes them for perfectly independent.
"""

from __future__ import annotations

import torch
from torch import Tensor


def inf_fs(features_ND: Tensor, alpha: float, damping: float) -> Tensor:
    """Return (D,) scores, float64, 0 and up."""
    features_ND = features_ND.double()
    deviation_D = features_ND.std(dim=0) if len(features_ND) > 1 else torch.zeros_like(features_ND[0])
    live_D = deviation_D > 0
    spread_DD = torch.maximum(deviation_D[:, None], deviation_D[None, :])
    low, high = spread_DD.min(), spread_DD.max()
    spread_DD = (spread_DD - low) / (high - low) if float(high) > float(low) else torch.zeros_like(spread_DD)
    graph_DD = alpha * spread_DD + (1 - alpha) * (1 - spearman(features_ND).abs())
    graph_DD = torch.where(live_D[:, None] & live_D[None, :], graph_DD, 0.0)
    return path_sums(graph_DD, damping)


def path_sums(graph_DD: Tensor, damping: float) -> Tensor:
    """Return (D,): (I - r A)^-1 1 - 1 with r = damping / spectral radius of the symmetric A (D, D)."""
    radius = torch.linalg.eigvalsh(graph_DD).abs().max()
    ones_D = torch.ones(len(graph_DD), dtype=graph_DD.dtype)
    if not float(radius) > 0:
        return torch.zeros_like(ones_D)
    system_DD = torch.eye(len(graph_DD), dtype=graph_DD.dtype) - damping / radius * graph_DD
    solved: Tensor = torch.linalg.solve(system_DD, ones_D)
    return solved - 1


def spearman(features_ND: Tensor) -> Tensor:
    """Return (D, D) rank correlations; features that never change have 0. Equal values share their mean rank."""
    ranks_ND = _ranks(features_ND)
    centred_ND = ranks_ND - ranks_ND.mean(dim=0)
    norm_D = centred_ND.norm(dim=0)
    unit_ND = torch.where(norm_D > 0, centred_ND / torch.where(norm_D > 0, norm_D, 1.0), 0.0)
    return unit_ND.T @ unit_ND


def _ranks(features_ND: Tensor) -> Tensor:
    columns_DN = features_ND.T.contiguous()
    sorted_DN = columns_DN.sort(dim=1).values
    below_DN = torch.searchsorted(sorted_DN, columns_DN)
    up_to_DN = torch.searchsorted(sorted_DN, columns_DN, right=True)
    return (below_DN + up_to_DN).double().T / 2
