"""Moments of activation(z) for z ~ N(b, g^2), closed form or by quadrature; b and g from batch norms. All float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from autoprune.evidence.readings import Reading
from autoprune.evidence.store import ModelEvidence
from autoprune.graph import Group, Role

_NODES = 64
_NARROW = 1e-12
BY_QUADRATURE: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "hardswish": F.hardswish,
    "elu": F.elu,
    "selu": F.selu,
    "celu": F.celu,
    "mish": F.mish,
    "softplus": F.softplus,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
}


@dataclass(frozen=True)
class Moments:
    """Expected value, expected magnitude and expected square of an activation's output; share of z above zero."""

    mean: Tensor
    magnitude: Tensor
    square: Tensor
    active: Tensor

    @property
    def std(self) -> Tensor:
        """Standard deviation."""
        return (self.square - self.mean.square()).clamp_min(0).sqrt()


def rectified(b: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return E[max(z, 0)], E[max(z, 0)^2] and P(z > 0), without cancellation far below zero."""
    narrow = g < _NARROW
    t = b / torch.where(narrow, torch.ones_like(g), g)
    density = torch.exp(-t.square() / 2) / math.sqrt(2 * math.pi)
    share = torch.special.ndtr(t)
    # Below zero everything is the density times a difference of order one, by the ratio share / density.
    ratio = math.sqrt(math.pi / 2) * torch.special.erfcx(-t.clamp_max(0) / math.sqrt(2))
    first = torch.where(t < 0, density * (1 + t * ratio), t * share + density)
    second = torch.where(t < 0, density * ((t.square() + 1) * ratio + t), (t.square() + 1) * share + t * density)
    m1 = torch.where(narrow, b.clamp_min(0), g * first.clamp_min(0))
    m2 = torch.where(narrow, b.clamp_min(0).square(), g.square() * second.clamp_min(0))
    return m1, m2, torch.where(narrow, (b > 0).double(), share)


def moments(activation: str, b: Tensor, g: Tensor, slope: float = 0.0) -> Moments:
    """Return the moments of activation(z) for z ~ N(b, g^2), g at least 0."""
    m1, m2, active = rectified(b, g)
    second = b.square() + g.square()
    if activation == "identity":
        return Moments(b, 2 * m1 - b, second, active)
    if activation == "relu":
        return Moments(m1, m1, m2, active)
    if activation == "leaky_relu":
        a = slope
        return Moments(a * b + (1 - a) * m1, m1 + abs(a) * (m1 - b), m2 + a**2 * (second - m2), active)
    if activation == "relu6":
        above1, above2, _ = rectified(b - 6, g)
        mean, square = m1 - above1, m2 - above2 - 12 * above1
        return Moments(mean.clamp_min(0), mean.clamp_min(0), square.clamp_min(0), active)
    return _quadrature(BY_QUADRATURE[activation], b, g, active)


def _quadrature(function: Callable[[Tensor], Tensor], b: Tensor, g: Tensor, active: Tensor) -> Moments:
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    z_Q = torch.tensor(nodes, dtype=b.dtype, device=b.device)
    weight_Q = torch.tensor(weights / weights.sum(), dtype=b.dtype, device=b.device)
    out_CQ = function(b[:, None] + g[:, None] * z_Q)
    return Moments(out_CQ @ weight_Q, out_CQ.abs() @ weight_Q, out_CQ.square() @ weight_Q, active)


def normed_sum(
    group: Group, evidence: ModelEvidence, reading: Reading, *, effective_scale: bool = True
) -> tuple[Tensor, Tensor]:
    """Return b and g (C, M) of the sum that is read, its norms taken as independent; M channels to a unit.

    effective_scale: var / (var + eps) of gamma ** 2, so that a dead convolution has no spread.
    """
    means, variances = [], []
    for name, eps in zip(reading.norms, reading.eps, strict=True):
        weight = next(p for p in group.places_with(Role.NORM_WEIGHT) if p.tensor == name)
        of_norm = {p.role: evidence.slices(p) for p in group.places if p.module == weight.module}
        variance_CM = of_norm[Role.NORM_WEIGHT].square()
        if effective_scale and Role.NORM_VAR in of_norm:
            var_CM = of_norm[Role.NORM_VAR].clamp_min(0)
            variance_CM = variance_CM * (var_CM / (var_CM + eps).clamp_min(torch.finfo(torch.float64).tiny))
        variances.append(variance_CM)
        means.append(of_norm[Role.NORM_BIAS])
    return torch.stack(means).sum(dim=0), torch.stack(variances).sum(dim=0).sqrt()
