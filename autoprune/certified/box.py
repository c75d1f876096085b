"""All inputs within epsilon of a sample, in every pixel (L-infinity)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from autoprune.data.images import Pixels
from autoprune.errors import NotApplicable


@dataclass(frozen=True)
class Interval:
    """A lowest and a highest value for every element of a tensor; low <= high."""

    low: Tensor
    high: Tensor

    @property
    def middle(self) -> Tensor:
        """The centre."""
        return (self.low + self.high) / 2

    @property
    def radius(self) -> Tensor:
        """Half of the width, 0 or more."""
        return (self.high - self.low) / 2

    @classmethod
    def around(cls, middle: Tensor, radius: Tensor) -> Interval:
        """Return the interval of this centre and half-width."""
        return cls(middle - radius, middle + radius)


def box_around(inputs: Tensor, epsilon: float, pixels: Pixels | None) -> Interval:
    """Return the inputs that lie within epsilon of each sample, (N, ...), and are images.

    pixels: how the inputs were made of values in [0, 1]; epsilon is in those values, and what lies outside of [0, 1] is
    left out. None: epsilon is in units of the inputs, of which nothing more is known.
    """
    if pixels is None:
        return Interval(inputs - epsilon, inputs + epsilon)
    if pixels.mean is None or pixels.std is None:
        return Interval((inputs - epsilon).clamp(min=0.0), (inputs + epsilon).clamp(max=1.0))
    shape = (1, -1, *(1 for _ in range(inputs.ndim - 2)))
    mean, std = (
        torch.tensor(v, dtype=inputs.dtype, device=inputs.device).view(shape) for v in (pixels.mean, pixels.std)
    )
    step, lowest, highest = epsilon / std, -mean / std, (1 - mean) / std
    return Interval(torch.maximum(inputs - step, lowest), torch.minimum(inputs + step, highest))


def only_tensor(inputs: object) -> Tensor:
    """Return the inputs as the one tensor that a box is put around. Raises NotApplicable for anything else."""
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        raise NotApplicable(
            "a model can be certified when its input is one tensor of real numbers; "
            f"this one takes {type(inputs).__name__}"
        )
    return inputs
