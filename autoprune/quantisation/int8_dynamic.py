"""Weights in 8 bits, activations as they come. Surveyed in Roth et al., JMLR 2024, arXiv 2001.03048.

    weights      s_c = max |W_c| / 127,            q = clamp(round(W / s_c), -127, 127)    for each output channel c
    activations  as in `int8_static`, but [low, high] is the range of the tensor at hand, found anew in every call

Needs no samples. Finding ranges takes time, more than 8-bit products save in small convolutions: meant for linear
layers and for models whose activations differ much from sample to sample. Ranges are those of the whole batch, so that
the output of a sample depends a little on its batch. Between layers activations are float32, and take as much memory.
The work is done by onnxruntime's quantiser; of the survey only
the abstract was read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from autoprune.fields import choice
from autoprune.quantisation._base import Batches, Quantisation
from autoprune.quantisation._onnx import folded, quietly


@dataclass(frozen=True, kw_only=True)
class Int8Dynamic(Quantisation):
    """Keep 8-bit weights, and find the ranges of activations in every call."""

    bits: ClassVar[int] = 8
    activation_bits: ClassVar[int] = 32
    per_channel: bool = choice(True, options=(True, False), help="one scale per output channel, or one per weight")
    reduce_range: bool = choice(
        False,
        options=(False, True),
        search=(False,),
        help="weights of 7 bits, for processors whose 8-bit products overflow (x86 without VNNI)",
    )

    def quantise(self, source: Path, target: Path, batches: Batches) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        with folded(source) as plain, quietly():
            quantize_dynamic(
                plain,
                target,
                weight_type=QuantType.QInt8,
                per_channel=self.per_channel,
                reduce_range=self.reduce_range,
            )
