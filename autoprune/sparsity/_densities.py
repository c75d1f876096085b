"""How sparse each layer is, for methods that fix it beforehand. Evci et al., ICML 2020, arXiv 1911.11134, section 3.

    uniform   every layer alike
    er        density in proportion to (n_in + n_out) / (n_in * n_out)
    erk       density in proportion to sum(shape) / product(shape) of the weight, kernel sides included

Proportions are scaled so that together the layers keep as many weights as a uniform sparsity would; a layer that would
need a density above one is dense, and the others make up for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import floor, prod
from typing import Literal

Distribution = Literal["uniform", "er", "erk"]
Shapes = Mapping[str, Sequence[int]]


def removed_fractions(
    shapes: Shapes, sparsity: float, distribution: Distribution, power: float = 1.0
) -> dict[str, float]:
    """Return the share of zeros of every layer; 0 for layers that end up dense. power: of the proportions."""
    if distribution == "uniform":
        return dict.fromkeys(shapes, sparsity)
    raw = {name: _proportion(shape, distribution) ** power for name, shape in shapes.items()}
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    dense: set[str] = set()
    while len(dense) < len(sizes):
        sparse = [name for name in sizes if name not in dense]
        budget = sum(sizes[n] - zeros(sizes[n], sparsity) for n in sparse) - sum(
            zeros(sizes[n], sparsity) for n in dense
        )
        scale = budget / sum(raw[n] * sizes[n] for n in sparse)
        largest = max(raw[n] for n in sparse)
        if largest * scale <= 1:
            return {n: 0.0 if n in dense else 1 - scale * raw[n] for n in sizes}
        dense |= {n for n in sparse if raw[n] == largest}
    return dict.fromkeys(sizes, 0.0)


def zeros(size: int, removed_fraction: float) -> int:
    """Return how many of `size` weights are zero, rounded down."""
    # the small addition keeps 0.9 * 10 from becoming 8 by rounding error
    return floor(removed_fraction * size + 1e-9)


def _proportion(shape: Sequence[int], distribution: Distribution) -> float:
    sides = shape if distribution == "erk" else shape[:2]
    return sum(sides) / prod(sides)
