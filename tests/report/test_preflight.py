"""What is told before a study: the same numbers as plain data and as tables."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from autoprune.report.preflight import plain_preflight, print_preflight
from autoprune.report.tables import human, percent
from autoprune.study.config import load
from autoprune.study.preparation import preflight


class Mixed(nn.Module):
    """1 -> 6 channels, sorted (no rule), then two layers that can be cut, the second on a residual branch."""

    def __init__(self) -> None:
        super().__init__()
        self.sorted, self.stem = nn.Conv2d(1, 6, 1), nn.Conv2d(6, 8, 1, bias=False)
        self.block, self.head = Branch(), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(torch.sort(self.sorted(x), dim=1)[0])
        return self.head(self.block(x).mean((2, 3)))


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(8, 16, 1, bias=False), nn.Conv2d(16, 8, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    study = {
        "name": "mixed",
        "model": {"name": f"{__name__}:Mixed"},
        "data": {"name": "digits"},
        "targets": [0.5],
        "trial": {"device": "cpu"},
        "executor": {"name": "inline"},
    }
    return plain_preflight(preflight(load(study).config))


@pytest.fixture(scope="module")
def printed(plain: dict[str, Any]) -> list[str]:
    out = io.StringIO()
    print_preflight(Console(file=out, width=160), plain)
    return [" ".join(line.split()) for line in out.getvalue().splitlines()]


# FLOPs at 64 positions of the 8x8 image, the linear layer at one: 2 * (64 * (6 + 48 + 128 + 128) + 80).
FLOPS = 39_840
PARAMS = 12 + 48 + 128 + 128 + 90


def test_what_can_be_removed(plain: dict[str, Any]) -> None:
    structure = plain["structure"]
    assert (structure["flops"], structure["params"], structure["units"]) == (FLOPS, PARAMS, 8 + 16)
    by_name = {group["name"]: group for group in structure["groups"]}
    # one of 8 channels left of stem and branch: 7 of 8 of their weights and of the linear layer's go
    assert by_name["stem"]["flops_share"] == pytest.approx(7 / 8 * 2 * (64 * (48 + 256) + 80) / FLOPS)
    assert by_name["stem"]["params_share"] == pytest.approx(7 / 8 * (48 + 256 + 80) / PARAMS)
    assert by_name["block.up"]["params_share"] == pytest.approx(15 / 16 * 256 / PARAMS)
    least = 64 * (6 + 6 + 1 + 1) + 10
    assert structure["reachable_flops"] == [pytest.approx(2 * least / FLOPS), 1.0]
    assert structure["reachable_params"] == [pytest.approx((12 + 6 + 2 + 20) / PARAMS), 1.0]
    assert structure["reachable_with_blocks"] == [pytest.approx(2 * (least - 128) / FLOPS), 1.0]
    (block,) = structure["blocks"]
    assert (block["name"], block["params_share"]) == ("block", 256 / PARAMS)


def test_what_cannot_and_why(plain: dict[str, Any], printed: list[str]) -> None:
    assert plain["structure"]["unsupported"] == ["aten.sort.default"]
    assert "operators without a rule aten.sort.default" in printed
    frozen = {item["name"]: item["reason"] for item in plain["structure"]["frozen"]}
    assert frozen.keys() == {"sorted", "head"}
    assert any(line.startswith("sorted 6") and "no rule" in line for line in printed)


def test_tables_show_the_same_numbers(plain: dict[str, Any], printed: list[str]) -> None:
    structure, forward = plain["structure"], plain["forward"]
    assert "Groups that can be cut: 2 (24 units)" in printed
    for g in structure["groups"]:
        shares = f"{percent(g['flops_share'])} {percent(g['params_share'])}"
        assert f"{g['name']} channel {g['units']} 1 {shares}" in printed
    assert f"parameters {human(PARAMS)}" in printed
    gone = [percent(1 - structure[f"reachable_{what}"][0]) for what in ("flops", "params")]
    assert f"removable by cutting units {gone[0]} of the FLOPs, {gone[1]} of the parameters" in printed
    times = f"{forward['sample_ms']:.3g} ms for one sample, {forward['batch_ms']:.3g} ms for {forward['batch']}"
    assert f"forward pass on cpu {times}" in printed
    assert f"and by skipping blocks {structure['reachable_with_blocks'][0]:.3f} to 1 of the FLOPs" in printed
