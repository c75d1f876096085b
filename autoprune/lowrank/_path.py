"""From a recipe's strength to the ranks of its factorised layers, and what they save."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autoprune.lowrank._base import LowRank

if TYPE_CHECKING:
    from autoprune.graph import Layer, Structure

Counts = NDArray[np.int64]
Energies = Mapping[str, NDArray[np.float64]]
_ROUNDING = 1e-9


class RankPath:
    """Strength s and kept units to ranks.

    With f the layer's wanted share, a layer has the largest rank that costs at most f ** s of its FLOPs, or the least
    that keeps f ** s of its energy, where that is known. Energies are those of the layer before the cut at hand; a cut
    layer has the same share of its own full rank. Strength 0 factorises nothing.
    """

    def __init__(self, structure: Structure, low_rank: LowRank, energies: Energies) -> None:
        self._structure, self._low_rank, self._energies = structure, low_rank, energies
        shares = low_rank.rank_fractions(structure.layers)
        self._shares = {
            i: shares[layer.name] for i, layer in enumerate(structure.layers) if shares.get(layer.name, 1.0) < 1
        }

    def at(self, counts_G: Counts, strength: float) -> dict[int, int]:
        """Return the wanted ranks by the index of the layer."""
        widths_L2, dense_L = self._structure.layer_widths(counts_G), self._structure.layer_flops(counts_G)
        return {
            i: self._rank(self._structure.layers[i], *_pair(widths_L2[i]), float(dense_L[i]), share**strength)
            for i, share in self._shares.items()
            if share**strength < 1
        }

    def one_more(self, counts_G: Counts, ranks: Mapping[int, int], layer: int) -> dict[int, int]:
        """Return the ranks with the next one of a layer, unless it is full."""
        widths = _pair(self._structure.layer_widths(counts_G)[layer])
        full = self._low_rank.full_rank(self._structure.layers[layer], *widths)
        return {**ranks, layer: min(ranks[layer] + 1, full)}

    def change(self, counts_G: Counts, ranks: Mapping[int, int]) -> tuple[float, float, dict[int, int]]:
        """Return what factorising adds to FLOPs and parameters, and the ranks of the layers that it makes cheaper.

        The others are left as they are.
        """
        widths_L2, dense_L = self._structure.layer_widths(counts_G), self._structure.layer_flops(counts_G)
        flops, params, kept = 0.0, 0.0, dict[int, int]()
        for i, rank in ranks.items():
            layer, widths = self._structure.layers[i], _pair(widths_L2[i])
            thin = self._low_rank.flops(layer, *widths, rank)
            if thin < dense_L[i]:
                flops += thin - float(dense_L[i])
                params += self._low_rank.params(layer, *widths, rank) - _dense_params(layer, *widths)
                kept[i] = rank
        return flops, params, kept

    def _rank(self, layer: Layer, n_in: int, n_out: int, dense: float, share: float) -> int:
        energies_K = self._energies.get(layer.name)
        if energies_K is None:
            return self._low_rank.largest_rank(layer, n_in, n_out, share * dense * (1 + _ROUNDING))
        full = self._low_rank.full_rank(layer, n_in, n_out)
        needed = int(np.searchsorted(energies_K, share * (1 - _ROUNDING))) + 1
        return min(full, math.ceil(needed * full / len(energies_K)))


def _pair(widths_2: NDArray[np.float64]) -> tuple[int, int]:
    return int(widths_2[0]), int(widths_2[1])


def _dense_params(layer: Layer, n_in: int, n_out: int) -> int:
    kernel = int(np.prod(layer.kernel)) if layer.kernel else 1
    return n_in // layer.groups * n_out * kernel + (n_out if layer.bias is not None else 0)
