"""Exemplar filters by affinity propagation: how few filters stand for all, told by one coefficient beta.

    S[i, k] = -|w_i - w_k| ** 2,   preference of k = beta * median_i S[i, k]   (the zero diagonal among them)

w_i are the weights of unit i. Since S <= 0, a smaller beta makes more exemplars; beta = 0 makes everyone one.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autoprune.evidence.kinds import Gathered, Source
from autoprune.graph import Group, Role, Structure

FloatArray = NDArray[np.float64]
BETAS = (0.0, *np.arange(0.1, 1.31, 0.025).round(3).tolist(), 1.5, 2.0, 3.0, 5.0, 10.0)
"""Coefficients that are tried, the published ones among them; what lies between is interpolated."""
_ATTEMPTS = ((0.5, 200), (0.7, 1000), (0.9, 1000))


def exemplar_betas(model: nn.Module, structure: Structure, source: Source) -> Gathered:
    """Gather for every unit (C,) the largest beta at which its group still keeps it. No data are looked at."""
    tensors = dict(model.named_parameters(remove_duplicate=False))
    found: dict[str, Tensor] = {}
    for group in structure.groups:
        filters_CK = _filters(group, tensors)
        if filters_CK is not None:
            found[group.name] = torch.tensor(kept_until(filters_CK), device=source.device)
    return found


def _filters(group: Group, tensors: Mapping[str, Tensor]) -> FloatArray | None:
    """Return what produces each unit, layer by layer, each divided by its mean filter norm."""
    parts = []
    for place in group.places_with(Role.OUTPUT) or group.places_with(Role.DEPTHWISE):
        rows = tensors[place.tensor].detach().double().cpu().movedim(place.axis, 0)
        filters_CK = rows[torch.tensor(place.indices)].flatten(1).numpy()
        norm = np.linalg.norm(filters_CK, axis=1).mean()
        parts.append(filters_CK / norm if norm > 0 else filters_CK)
    return np.concatenate(parts, axis=1) if parts else None


def exemplars(filters_CK: FloatArray, beta: float) -> NDArray[np.int64] | None:
    """Return the exemplars' indices, sorted; None when affinity propagation does not settle."""
    from sklearn.cluster import affinity_propagation
    from sklearn.exceptions import ConvergenceWarning

    similarity_CC = _similarity(filters_CK)
    others = ~np.eye(len(filters_CK), dtype=bool)
    if len(filters_CK) == 1 or np.ptp(similarity_CC[others]) <= 1e-12 * np.ptp(similarity_CC):
        return _alike(similarity_CC, beta)
    preference_C = beta * np.median(similarity_CC, axis=0)
    for damping, iterations in _ATTEMPTS:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            try:
                centres, _ = affinity_propagation(
                    similarity_CC.copy(), preference=preference_C, damping=damping, max_iter=iterations, random_state=0
                )
            except ConvergenceWarning:
                continue
        if len(centres):
            return np.sort(np.asarray(centres, dtype=np.int64))
    return None


def _alike(similarity_CC: FloatArray, beta: float) -> NDArray[np.int64]:
    """All pairs alike: one for all if they are copies or if standing alone costs more than belonging, else everyone."""
    pair = similarity_CC.min()
    alone = len(similarity_CC) == 1 or (pair < 0 and beta * np.median(similarity_CC[:, 0]) > pair)
    return np.arange(len(similarity_CC) if alone else 1)


def _similarity(filters_CK: FloatArray) -> FloatArray:
    square_C = (filters_CK**2).sum(axis=1)
    distance_CC: FloatArray = square_C[:, None] + square_C[None, :] - 2 * filters_CK @ filters_CK.T
    # What cancellation leaves of the distance between copies is not a distance.
    distance_CC[distance_CC < 1e-12 * max(float(square_C.max()), 1e-300)] = 0.0
    np.fill_diagonal(distance_CC, 0.0)
    similarity_CC: FloatArray = -distance_CC
    return similarity_CC


def kept_until(filters_CK: FloatArray) -> FloatArray:
    """Return for every unit (C,) the largest beta at which it is kept.

    At each beta tried as many units are kept as there are exemplars, those that stay exemplars longest before the
    others; between two betas the number is interpolated, so that one threshold on beta serves all groups.
    """
    units = len(filters_CK)
    tried = [(beta, found) for beta in BETAS if (found := exemplars(filters_CK, beta)) is not None]
    last_C, often_C = np.zeros(units), np.zeros(units)
    for beta, found in tried:
        last_C[found] = np.maximum(last_C[found], beta)
        often_C[found] += 1
    # Of units that are alike in this the one that no other resembles stays longer.
    nearest_C = np.where(np.eye(units, dtype=bool), -np.inf, _similarity(filters_CK)).max(axis=1, initial=-np.inf)
    order = np.lexsort((nearest_C, -often_C, -last_C))
    counts = np.minimum.accumulate([units, *(len(found) for _, found in tried)])
    betas = np.array([-1e-3, *(beta for beta, _ in tried)])
    rank_C = np.empty(units)
    rank_C[order] = np.arange(1, units + 1)
    return _beta_of_rank(rank_C, betas, counts)


def _beta_of_rank(rank_C: FloatArray, betas: FloatArray, counts: NDArray[np.int64]) -> FloatArray:
    """Invert the falling number of kept units: the largest beta at which at least `rank` units are kept."""
    # What is kept to the end of what was tried goes last: one unit stays at any beta.
    betas, counts = np.append(betas, betas[-1] + 1.0), np.append(counts, 0)
    at_C = np.array([int(np.flatnonzero(counts >= rank)[-1]) for rank in rank_C])
    share_C = (counts[at_C] - rank_C) / (counts[at_C] - counts[at_C + 1])
    out_C: FloatArray = betas[at_C] + share_C * (betas[at_C + 1] - betas[at_C])
    return out_C
