"""What all factorisations of single layers declare: which layers, and how ranks are spread over them."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from autoprune.fields import PerItem, choice, hyperparameters, per_item
from autoprune.lowrank import _pairs
from autoprune.lowrank._base import LowRank
from autoprune.lowrank._matrices import Axes
from autoprune.lowrank._responses import spread_of

if TYPE_CHECKING:
    from autoprune.evidence import ModelEvidence
    from autoprune.graph import Layer


@dataclass(frozen=True, kw_only=True)
class Ranked(LowRank):
    """Factorises every ungrouped layer whose wanted share is below 1."""

    rank_fraction: float | Mapping[str, float] = per_item(
        0.5,
        of="layer",
        valid=(0.001, 1.0),
        search=(0.2, 1.0),
        unmatched=1.0,
        help="rank as the share of the layer's FLOPs that the factors may cost, or of the energy that they keep; 1 "
        "leaves the layer as it is",
    )
    ranks: str = choice(
        "searched",
        options=("searched", "energy"),
        help="what shares are shares of: FLOPs, so that ranks are searched, or energy (squared singular values), so "
        "that every layer keeps its own least rank",
    )

    def splits(self, layer: Layer) -> bool:
        """Tell whether the method may factorise a layer."""
        return _pairs.is_splittable(layer)

    def rank_fractions(self, layers: Sequence[Layer]) -> dict[str, float]:
        """Raises BadRecipe for a key of the mapping that matches no eligible layer."""
        declared = cast(PerItem, hyperparameters(self)["rank_fraction"])
        names = [layer.name for layer in layers if self.splits(layer)]
        return declared.resolve(f"{type(self).__name__}.rank_fraction", self.rank_fraction, names)

    def energies(self, layers: Sequence[Layer], evidence: ModelEvidence) -> dict[str, NDArray[np.float64]]:
        """Raises TrialFailed when a weight is NaN or infinite."""
        if self.ranks == "searched":
            return {}
        kind = {key: value for key, value in self.config().items() if key != "rank_fraction"}

        def of(layer: Layer) -> Tensor:
            moments = evidence.input_moments(layer.name) if self.fits_outputs else None
            spread = None if moments is None else spread_of(*moments, centre=layer.bias is not None)
            return self.kept_energy(evidence.weight(layer.weight).double(), spread).cpu()

        return {
            layer.name: evidence.remember(f"{kind}/{layer.name}", functools.partial(of, layer)).numpy()
            for layer in layers
            if self.splits(layer)
        }

    @abstractmethod
    def kept_energy(self, weight: Tensor, spread: Tensor | None) -> Tensor:
        """Return the shares (K,) of a weight's energy that ranks 1 to K, the full one, keep; float64.

        spread: (D, D), of what the layer reads; None where the method does not fit outputs, or has no moments.
        """


@dataclass(frozen=True, kw_only=True)
class Paired(Ranked):
    """Puts two thin layers in the place of one, each kernel axis in one of the two."""

    def full_rank(self, layer: Layer, n_in: int, n_out: int) -> int:
        return _pairs.pair_full_rank(layer, self.axes(layer.kernel), n_in, n_out)

    def flops(self, layer: Layer, n_in: int, n_out: int, rank: int) -> float:
        return _pairs.pair_flops(layer, self.axes(layer.kernel), n_in, n_out, rank)

    def params(self, layer: Layer, n_in: int, n_out: int, rank: int) -> int:
        return _pairs.pair_params(layer, self.axes(layer.kernel), n_in, n_out, rank)

    def skeleton(self, module: nn.Module, rank: int) -> nn.Module:
        """Raises NotApplicable for anything but a plain, ungrouped layer, ValueError for a rank below 1."""
        return _pairs.empty_pair(module, self.axes(_pairs.kernel_of(module)), rank)

    def axes(self, kernel: tuple[int, ...]) -> Axes:
        """Tell which kernel axes the first of the two layers takes: by default all of them."""
        return (True,) * len(kernel)
