"""Convolutions that merge similar channels by hashing (HASTE). Meiner, Mehnert and Condurache, 2023, arXiv 2309.17211.

For every sample, tile of `tile` x `tile` outputs and input channel c, with x_c the window that the tile reads:

    code_c = the signs of V^T (x_c - mean over channels),    B = the channels of one code
    Y = sum over B of (mean over B of x_c) * (sum over B of F_c)

V are `planes` random hyperplanes, sparse and ternary, drawn once for each layer; the layers count up from `seed`. The
result is exact where merged channels are equal. It needs no data and no training; in training mode the layer is the
plain convolution. Parameters and state are those of the model before.

FLOPs depend on the input, and so are measured on the evaluated samples: convolutions over the buckets, and centring,
hashing and merging at 1 FLOP for each addition. They are reported as dynamic FLOPs, apart from dense ones, which stay
as they are. Nothing becomes faster in stock PyTorch: this is a reference, which spends more than it counts.

Exchanged are ungrouped two-dimensional convolutions of more than one kernel position and at least `least_channels`
inputs, at the end of a trial. The papers' bodies were not available: what centres, hashes and merges comes from a port
that cites their equations, and whether their patches are inputs or outputs was not read; here a tile is of outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from autoprune.errors import NotApplicable
from autoprune.fields import choice, integer, real
from autoprune.replacement._base import Replacement
from autoprune.replacement._hashed import Hashed, Projection

if TYPE_CHECKING:
    from autoprune.graph import Layer


@dataclass(frozen=True, kw_only=True)
class Haste(Replacement):
    """Merge the input channels of convolutions that look alike, where they look alike."""

    whole: ClassVar[bool] = True

    planes: int = integer(14, valid=(0, 32), search=(4, 32), help="hyperplanes: fewer merge more channels")
    tile: int = choice(8, options=(4, 8, 16, 32), help="outputs along each side of a tile that is hashed by itself")
    zeros: float = real(
        2 / 3, valid=(0.0, 0.99), search=(0.0, 0.9), help="share of zeros in ternary hyperplanes: the more, the cheaper"
    )
    projection: Projection = choice(  # noqa: RUF009 - a literal behind an alias
        "ternary", options=("ternary", "gaussian"), search=("ternary",), help="entries of the hyperplanes"
    )
    least_channels: int = integer(16, valid=(1, 65536), search=(8, 64), log=True, help="inputs of a layer, at least")
    seed: int = integer(0, valid=(0, 2**31), search=(0, 100), help="of the hyperplanes of the first layer exchanged")

    def layers(self, model: nn.Module) -> list[tuple[str, Replacement]]:
        found = [name for name, module in model.named_modules() if self._fits(module)]
        return [(name, replace(self, seed=self.seed + i)) for i, name in enumerate(found)]

    def _fits(self, module: nn.Module) -> bool:
        if type(module) is not nn.Conv2d or module.groups != 1 or math.prod(module.kernel_size) == 1:
            return False
        return module.in_channels >= self.least_channels

    @property
    def share(self) -> float:
        return 0.0

    def saved(self, layer: Layer) -> float:
        return 0.0

    def skeleton(self, module: nn.Module, rows: Sequence[int]) -> nn.Module:
        """Weights are the module's own."""
        return self.replaced(module, rows)

    def replaced(self, module: nn.Module, rows: Sequence[int]) -> nn.Module:
        """Raises NotApplicable for anything but a plain, ungrouped two-dimensional convolution."""
        if type(module) is not nn.Conv2d or module.groups != 1:
            raise NotApplicable(f"haste takes the place of plain, ungrouped Conv2d layers only, got {module}")
        return Hashed(
            module,
            planes=self.planes,
            tile=self.tile,
            zeros=self.zeros,
            projection=self.projection,
            seed=self.seed,
        )
