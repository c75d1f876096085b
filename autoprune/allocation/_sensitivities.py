"""Group sensitivities: the loss and accuracy when one group alone is cut, by how much of it stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoprune.allocation._base import AllocationContext, Measure

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Curve:
    """What cutting one group of `size` units to each of `counts` (L,), falling, leads to: losses and accuracies (L,)."""

    size: int
    counts: NDArray[np.int64]
    losses: FloatArray
    accuracies: FloatArray


@dataclass(frozen=True, eq=False)
class Sensitivities:
    """The uncut model's loss and accuracy, and a curve for every scored group."""

    loss: float
    accuracy: float
    curves: Mapping[str, Curve]


def keep_fractions(levels: int) -> tuple[float, ...]:
    """Return `levels` keep fractions between 1 and 0, evenly spaced, falling: 3 gives 0.75, 0.5, 0.25."""
    return tuple((levels - i) / (levels + 1) for i in range(levels))


def kept_counts(size: int, fractions: Sequence[float], grid: int) -> NDArray[np.int64]:
    """Return max(1, int(size * fraction)) for every fraction, on the grid; what comes out twice is there once.

    The addition keeps a product such as 10 * 0.7 from falling below its whole number.
    """
    found = [max(min(grid, size), int(size * f / grid + 1e-9) * grid) for f in fractions]
    return np.array(sorted(set(found), reverse=True), dtype=np.int64)


def measure_groups(
    context: AllocationContext, measure: Measure, fractions: Sequence[float], samples: int
) -> Sensitivities:
    """Measure every scored group alone, at each of these keep fractions of its full size."""
    whole = measure({}, samples)
    curves = {}
    for name in context.scores:
        size = context.full_sizes[name]
        counts = kept_counts(size, fractions, context.structure.round_to)
        found = [measure({name: int(count)}, samples) for count in counts]
        curves[name] = Curve(size, counts, np.array([e.loss for e in found]), np.array([e.accuracy for e in found]))
    return Sensitivities(whole.loss, whole.accuracy, curves)
