"""Codes, scales and zero points read back from the written file, and worked by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autoprune import programs
from autoprune.quantisation.int8_static import Int8Static

WEIGHT = torch.tensor([[-1.0, 0.55, 0.25, 0.126], [0.03, -0.04, 0.01, 0.0], [0.0, 0.0, 0.0, 0.0]])
SEEN = torch.tensor([[-0.5, 0.0, 1.0, 2.0], [2.0, 1.0, 0.0, -0.5]]).view(2, 4, 1, 1).repeat(1, 1, 3, 3)


def quantised(folder: Path, method: Int8Static, weight: Tensor, samples: Tensor) -> Path:
    """Write a convolution of one pixel, (N, 4, 3, 3) -> (N, 3, 3, 3), and quantise it."""
    model = nn.Conv2d(4, 3, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(weight.view(3, 4, 1, 1))
    programs.write(model, folder / "float.onnx", "onnx", samples)
    method.quantise(folder / "float.onnx", folder / "int8.onnx", [{"input": samples.numpy()}])
    return folder / "int8.onnx"


def constants(path: Path) -> dict[str, NDArray[np.generic]]:
    import onnx
    from onnx import numpy_helper

    return {one.name: numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}


def one(found: dict[str, NDArray[np.generic]], *parts: str) -> NDArray[np.generic]:
    (name,) = (n for n in found if all(part in n for part in parts))
    return found[name]


def test_weights_by_hand_one_scale_per_output_channel(tmp_path: Path) -> None:
    found = constants(quantised(tmp_path, Int8Static(ranges="minmax"), WEIGHT, SEEN))
    codes, scales = one(found, "weight", "quantized").reshape(3, 4), one(found, "weight", "scale")
    # 0.55 * 127 = 69.85, 0.25 * 127 = 31.75, 0.126 * 127 = 16.002; 0.03 / (0.04 / 127) = 95.25, a third of it 31.75
    assert codes.tolist() == [[-127, 70, 32, 16], [95, -127, 32, 0], [0, 0, 0, 0]]
    assert np.allclose(scales[:2], [1 / 127, 0.04 / 127])
    assert np.abs(codes * scales[:, None] - WEIGHT.numpy()).max() <= scales.max() / 2 + 1e-7
    assert np.count_nonzero(one(found, "weight", "zero_point")) == 0


def test_one_scale_for_all_loses_the_small_channels(tmp_path: Path) -> None:
    found = constants(quantised(tmp_path, Int8Static(ranges="minmax", per_channel=False), WEIGHT, SEEN))
    assert one(found, "weight", "quantized").reshape(3, 4)[1].tolist() == [4, -5, 1, 0]


def test_activations_by_hand_zero_is_exact(tmp_path: Path) -> None:
    path = quantised(tmp_path, Int8Static(ranges="minmax"), WEIGHT, SEEN)
    found = constants(path)
    # [-0.5, 2] in 255 steps: zero lies 0.5 / s = 51 steps above the lowest
    assert float(one(found, "input", "scale")) == pytest.approx(2.5 / 255)
    assert int(one(found, "input", "zero_point")) == 51
    eye = torch.cat([torch.eye(3), torch.zeros(3, 1)], dim=1)
    again = programs.OnnxModel(quantised(tmp_path, Int8Static(ranges="minmax"), eye, SEEN))
    given = torch.tensor([-0.5, 0.0, 3.0, 0.0]).view(1, 4, 1, 1).expand(1, 4, 3, 3).contiguous()
    # 3 lies outside of what was seen and is cut off at 2
    assert again(given)[0, :, 0, 0].tolist() == pytest.approx([-0.5, 0.0, 2.0], abs=2.5 / 255)
    assert again(given)[0, 1, 0, 0] == 0.0


def test_percentiles_leave_out_what_is_rare(tmp_path: Path) -> None:
    many = torch.linspace(0, 1, 1000 * 4 * 9).reshape(1000, 4, 3, 3)
    many[0, 0, 0, 0] = 50.0
    wide = constants(quantised(tmp_path, Int8Static(ranges="minmax"), WEIGHT, many))
    tight = constants(quantised(tmp_path, Int8Static(ranges="percentile"), WEIGHT, many))
    assert float(one(wide, "input", "scale")) == pytest.approx(50 / 255)
    assert float(one(tight, "input", "scale")) < 2 / 255


def test_seven_bits_for_processors_whose_products_overflow(tmp_path: Path) -> None:
    found = constants(quantised(tmp_path, Int8Static(ranges="minmax", reduce_range=True), WEIGHT, SEEN))
    assert one(found, "weight", "quantized").reshape(3, 4)[0].tolist() == [-64, 35, 16, 8]
