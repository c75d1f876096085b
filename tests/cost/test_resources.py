"""Bytes and energy by precision, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autoprune.cost.footprint import Footprint
from autoprune.cost.resources import Resources, count_resources


def test_bytes_and_energy_of_a_layer_by_precision() -> None:
    # 1000 MACs; 400 bytes moved in float32, 100 in int8: 1000 * 4.6 + 400 * 160 and 1000 * 0.3 + 100 * 160 pJ
    found = Footprint(peak_activations=30, activations=20, weights=60)
    plain, small = (Resources.counted(2000, 60, found, bits) for bits in (32, 8))
    assert (plain.weight_bytes, plain.peak_activation_bytes, plain.energy_proxy_uj) == (240, 120, 68_600e-6)
    # weights alone in 8 bits: 60 bytes of them, and 40 activations of 4 bytes
    mixed = Resources.counted(2000, 60, found, 8, 32)
    assert (mixed.weight_bytes, mixed.peak_activation_bytes) == (60, 120)
    assert mixed.energy_proxy_uj == pytest.approx((300 + 220 * 160) * 1e-6)
    assert (small.weight_bytes, small.peak_activation_bytes, small.energy_proxy_uj) == (60, 30, 16_300e-6)


def test_every_precision_is_counted_on_one_graph() -> None:
    # 1x3x8x8 -> 4 channels -> 2 channels: the most alive is (3 + 4) * 64
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 2, 1, bias=False)).eval()
    plain, small = count_resources(model, torch.zeros(1, 3, 8, 8), ((32, 32), (8, 8)))
    assert (plain.peak_activation_bytes, small.peak_activation_bytes) == (1792, 448)
    assert (plain.weight_bytes, small.weight_bytes, plain.params) == (80, 20, 20)
    assert plain.flops == small.flops == 2 * 64 * 20
    moved = 20 + 2 * 64 * (3 + 4 + 2)
    assert small.energy_proxy_uj == pytest.approx((64 * 20 * 0.3 + moved * 160) * 1e-6)
