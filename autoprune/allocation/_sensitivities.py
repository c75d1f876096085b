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
    """What cutting one group of `size` units to each of `fractions` (L,), falling, leads to.

    counts (L,) of kept units, alike where the group is too small to tell fractions apart; losses, accuracies (L,).
    """

    size: int
    fractions: tuple[float, ...]
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
    """Return max(1, int(size * fraction)) for every fraction, on the grid.

    The addition keeps a product such as 10 * 0.7 from falling below its whole number.
    """
    return np.array([max(min(grid, size), int(size * f / grid + 1e-9) * grid) for f in fractions], dtype=np.int64)


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
        losses, accuracies = [e.loss for e in found], [e.accuracy for e in found]
        curves[name] = Curve(size, tuple(fractions), counts, np.array(losses), np.array(accuracies))
    return Sensitivities(whole.loss, whole.accuracy, curves)
