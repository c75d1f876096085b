"""The neural implant of HAP. Yu et al., WACV 2022, arXiv 2101.08940.

    y[A] = conv_k(x; W[A]),   y[B] = conv_1(x; V),   V (|B|, in, 1, 1) in place of W[B] (|B|, in, k, k)

A the output channels that stay whole, B the moderately sensitive ones: of all units that a cut affects, the part
`fraction` with the highest scores. The others go. Both results stand in the order of the channels before. The implant
reads what the middle of the kernel read: same stride, padding less the kernel's reach, or a crop. Of a row's FLOPs and
weights 1 - 1/k**2 are saved; its bias and norm stay.

Departs from the paper: the implant begins as the middle of the old kernel; the authors' code ends with zeros, whose
first batch has no variance for the norm behind it to divide by. Kernels of one position, kernels of even size, grouped
convolutions and linear layers have no implant: there the affected units are removed. In a group with several producing
layers a unit is implanted in those with an odd kernel, and its rows in the others stay. With several cuts only the
last one implants.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from autoprune.fields import choice, real
from autoprune.replacement._base import Replacement
from autoprune.replacement._implanted import Implanted, has_centre

if TYPE_CHECKING:
    from autoprune.graph import Layer


@dataclass(frozen=True, kw_only=True)
class Implant(Replacement):
    """Give moderately sensitive channels of convolutions a 1x1 kernel."""

    fraction: float = real(
        0.1, valid=(0, 1), search=(0, 0.5), help="part of the affected units that is implanted and not removed"
    )
    init: str = choice("centre", options=("centre", "zero"), help="what an implant begins with")

    @property
    def share(self) -> float:
        return self.fraction

    def saved(self, layer: Layer) -> float:
        fits = layer.kind == "conv" and layer.groups == 1 and has_centre(layer.kernel)
        return 1 - 1 / math.prod(layer.kernel) if fits else 0.0

    def skeleton(self, module: nn.Module, rows: Sequence[int]) -> nn.Module:
        return Implanted(module, rows)

    def replaced(self, module: nn.Module, rows: Sequence[int]) -> nn.Module:
        made = Implanted(module, rows)
        others = sorted(set(range(cast(nn.Conv2d, module).out_channels)) - set(rows))
        with torch.no_grad():
            for part, chosen in ((made.kept, others), (made.implant, list(rows))):
                if part is not None:
                    _fill(part, module, chosen, zero=self.init == "zero")
        return made


def _fill(part: nn.Conv2d, module: nn.Module, rows: list[int], *, zero: bool) -> None:
    """Give a part its rows of the module, in place: whole kernels, or their middles where it has one position."""
    weight_OIK = cast(Tensor, module.weight)[rows]
    if part.weight.shape != weight_OIK.shape:
        for axis, size in enumerate(weight_OIK.shape[2:], start=2):
            weight_OIK = weight_OIK.narrow(axis, size // 2, 1)
        if zero:
            weight_OIK = torch.zeros_like(weight_OIK)
    part.weight.copy_(weight_OIK)
    if part.bias is not None:
        part.bias.copy_(cast(Tensor, module.bias)[rows])
