"""Weights and activations in 8 bits, ranges measured beforehand. Surveyed in Roth et al., JMLR 2024, arXiv 2001.03048.

    weights      s_c = max |W_c| / 127,            q = clamp(round(W / s_c), -127, 127)    for each output channel c
    activations  s = (high - low) / 255,  z = round(-low / s),  q = clamp(round(x / s) + z, 0, 255)    for each tensor

[low, high] is the range of a tensor on calibration samples, widened to hold 0, so that zero is exact. Products are
summed in 32 bits; biases are 32-bit integers in the scale of the products. Batch norms are folded into convolutions
first. The work is done by onnxruntime's quantiser; of the survey only the abstract was read.

ranges: `minmax` takes all that was seen, `percentile` leaves out a hundredth of a per cent at each end, `entropy` the
range whose histogram loses least (Kullback-Leibler).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from autoprune.fields import choice, integer
from autoprune.quantisation._base import Batches, Quantisation
from autoprune.quantisation._onnx import folded, quietly, reader

_PERCENTILE = 99.99


@dataclass(frozen=True, kw_only=True)
class Int8Static(Quantisation):
    """Compute with 8-bit weights and activations whose ranges were measured on samples."""

    bits: ClassVar[int] = 8
    activation_bits: ClassVar[int] = 8
    samples: int = integer(
        512, valid=(1, 65536), search=(32, 2048), log=True, help="training samples that ranges are measured on"
    )
    ranges: str = choice(
        "percentile", options=("minmax", "percentile", "entropy"), help="how the range of an activation is chosen"
    )
    per_channel: bool = choice(True, options=(True, False), help="one scale per output channel, or one per weight")
    reduce_range: bool = choice(
        False,
        options=(False, True),
        search=(False,),
        help="weights of 7 bits, for processors whose 8-bit products overflow (x86 without VNNI)",
    )

    @property
    def calibration_samples(self) -> int:
        return self.samples

    def quantise(self, source: Path, target: Path, batches: Batches) -> None:
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

        methods = {
            "minmax": CalibrationMethod.MinMax,
            "percentile": CalibrationMethod.Percentile,
            "entropy": CalibrationMethod.Entropy,
        }
        with folded(source) as plain, quietly():
            quantize_static(
                plain,
                target,
                reader(batches),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=self.per_channel,
                reduce_range=self.reduce_range,
                calibrate_method=methods[self.ranges],
                extra_options={"WeightSymmetric": True, "ActivationSymmetric": False, "CalibPercentile": _PERCENTILE},
            )
