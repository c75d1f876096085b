"""From a recipe's strength to three bands of units: removed, replaced, whole."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autoprune.allocation import Path
from autoprune.replacement._base import Replacement

if TYPE_CHECKING:
    from autoprune.graph import Layer, Place, Structure

Counts = NDArray[np.int64]
_BISECTIONS = 40
_ROUNDING = 1e-9


@dataclass(frozen=True)
class _Written:
    """A layer of which rows can become cheaper: its index, the group that it writes, where, and the part saved."""

    layer: int
    group: int
    place: Place
    saved: float


class Bands:
    """Strength s to the units that stay, and to those of them that stay whole.

    The path says how many units of each group stay whole at s; the others are affected. Of those, the part 1 - share
    goes, rounded down: what the same path takes at the lesser strength at which it takes that many in all. Under one
    global ranking the lowest scores go and the next ones are replaced. A group whose layers have no cheaper form loses
    all of its affected units. Units that earlier cuts took count among the affected.
    """

    def __init__(self, structure: Structure, replacement: Replacement, path: Path, full_sizes: Counts) -> None:
        self._structure, self._path, self._share = structure, path, replacement.share
        self._total = float(full_sizes.sum())
        self._written = list(_written(structure, replacement))
        self._replaceable_G = np.zeros(len(structure.groups), dtype=bool)
        self._replaceable_G[[item.group for item in self._written]] = True

    def staying(self, strength: float) -> NDArray[np.float64]:
        """Return the wanted number of units of every group that stay, (G,), whole or replaced."""
        whole_G = self._path(strength)
        least = self._total - (1 - self._share) * (self._total - float(whole_G.sum())) - _ROUNDING
        weak, strong = 0.0, strength
        if float(whole_G.sum()) >= least:
            weak = strength
        else:
            for _ in range(_BISECTIONS):
                middle = (weak + strong) / 2
                weak, strong = (middle, strong) if float(self._path(middle).sum()) >= least else (weak, middle)
        return np.where(self._replaceable_G, self._path(weak), whole_G)

    def whole(self, counts_G: Counts, strength: float) -> dict[int, int]:
        """Return how many of the staying units are whole, by the index of the group; groups not named lose none."""
        grid, wanted_G = self._structure.round_to, self._path(strength)
        found = {}
        for i in np.flatnonzero(self._replaceable_G).tolist():
            size, wanted = self._structure.group_sizes[i], float(wanted_G[i])
            count = size if wanted >= size else math.floor(wanted / grid + _ROUNDING) * grid
            found[i] = min(count, int(counts_G[i]))
        return found

    def one_more(self, counts_G: Counts, whole: Mapping[int, int], group: int) -> dict[int, int]:
        """Return the numbers with the next step of units of a group whole, unless all are."""
        return {**whole, group: min(whole[group] + self._structure.round_to, int(counts_G[group]))}

    def change(self, counts_G: Counts, whole: Mapping[int, int]) -> tuple[float, float]:
        """Return what the replaced units add to FLOPs and parameters: nothing, or less than nothing."""
        widths_L2, dense_L = self._structure.layer_widths(counts_G), self._structure.layer_flops(counts_G)
        flops = params = 0.0
        for item in self._written:
            layer = self._structure.layers[item.layer]
            n_in, n_out = widths_L2[item.layer].tolist()
            rows = item.place.indices.shape[1] * (int(counts_G[item.group]) - whole[item.group])
            flops -= item.saved * float(dense_L[item.layer]) / n_out * rows
            params -= item.saved * n_in * math.prod(layer.kernel) * rows
        return flops, params


def rows_by_layer(
    structure: Structure, replacement: Replacement, units: Mapping[str, list[int]]
) -> dict[str, list[int]]:
    """Return by layer the output rows, ascending, that units of a structure are computed by; no layer without any."""
    names, found = structure.names, dict[str, list[int]]()
    for item in _written(structure, replacement):
        rows = item.place.indices[units.get(names[item.group], [])].reshape(-1).tolist()
        if rows:
            layer = structure.layers[item.layer].name
            found[layer] = sorted([*found.get(layer, []), *rows])
    return found


def _written(structure: Structure, replacement: Replacement) -> Iterator[_Written]:
    layers = {layer.weight: (i, layer) for i, layer in enumerate(structure.layers)}
    for g, group in enumerate(structure.groups):
        for place in group.producers:
            index, layer = layers.get(place.tensor, (0, None))
            # where two plans share an axis a row is no single unit's
            if layer is None or place.axis != 0 or len(structure.plans_by_axis[place.tensor, 0]) != 1:
                continue
            saved = _saved(replacement, layer)
            if saved > 0:
                yield _Written(index, g, place, saved)


def _saved(replacement: Replacement, layer: Layer) -> float:
    # only a module of its own can be exchanged
    return replacement.saved(layer) if layer.weight == f"{layer.name}.weight" else 0.0
