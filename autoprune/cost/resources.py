"""What a forward pass takes at a precision: bytes of weights and activations, and a proxy of its energy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from autoprune.cost.footprint import Footprint, energy_proxy_pj, footprint
from autoprune.cost.measured import count_flops, count_params


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one forward pass of one sample takes, counted on the graph and not measured.

    weight_bytes: of parameters and buffers. energy_proxy_uj: microjoule, see `cost.footprint.energy_proxy_pj`.
    """

    flops: int
    params: int
    weight_bytes: int
    peak_activation_bytes: int
    energy_proxy_uj: float

    @classmethod
    def counted(
        cls, flops: int, params: int, found: Footprint, bits: int, activation_bits: int | None = None
    ) -> Resources:
        """Return the resources for weights and products of so many bits, and activations of as many or others."""
        return cls(
            flops=flops,
            params=params,
            weight_bytes=found.weights * bits // 8,
            peak_activation_bytes=found.peak_bytes(activation_bits or bits),
            energy_proxy_uj=energy_proxy_pj(flops / 2, found.moved_bytes(bits, activation_bits), bits) / 1e6,
        )


FLOAT_BITS = (32, 32)
"""Bits of a weight and of an activation."""


def count_resources(
    model: nn.Module, one: Any, bits: Sequence[tuple[int, int]] = (FLOAT_BITS,)
) -> tuple[Resources, ...]:
    """Count a model's resources at each of these bits (weight, activation), for a batch of one. Raises TraceFailed."""
    flops, params, found = count_flops(model, one), count_params(model), footprint(model, one)
    return tuple(Resources.counted(flops, params, found, *own) for own in bits)
