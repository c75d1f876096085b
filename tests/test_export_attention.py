"""Exports of models whose attention was cut: heads, dimensions inside heads, views with other sizes, skipped blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from autoprune import artefact, export, programs
from autoprune.artefact import Manifest
from autoprune.compressed import Compressed
from autoprune.graph import Structure, trace
from autoprune.models import build_model
from autoprune.specs import ModelSpec

from .graph.transformers import ATTENTION, transformer

BATCH = 5  # another one than programs.write checks


def every_second(structure: Structure) -> dict[str, np.ndarray]:
    return {n: np.arange(0, size, 2) for n, size in zip(structure.names, structure.group_sizes, strict=True)}


def run_onnx(path: Path, batch: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
    return torch.from_numpy(found)


def run_pt2(path: Path, batch: Tensor) -> Tensor:
    found = torch.export.load(path).module()(batch)
    assert isinstance(found, Tensor)
    return found


RUN = {"onnx": run_onnx, "pt2": run_pt2}


def check_file(path: Path, format: str, model: nn.Module, masked: nn.Module, example: Tensor) -> None:
    """The file agrees with the cut model, and so with the full one whose units are zero."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(7)
        batch = torch.randn(BATCH, *example.shape[1:])
        found = RUN[format](path, batch)
        for expected in (model(batch), masked(batch)):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module", params=ATTENTION)
def cut_attention(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module, Tensor]:
    model, example = transformer(request.param)
    structure = trace(model, example)
    keep = every_second(structure)
    assert {"head", "head_dim"} <= set(structure.kinds)
    return structure.cut(model, keep), structure.mask(model, keep), example


@pytest.mark.parametrize("format", export.FORMATS)
def test_every_way_to_write_attention(
    cut_attention: tuple[nn.Module, nn.Module, Tensor], tmp_path: Path, format: str
) -> None:
    pytest.importorskip("onnxruntime")
    small, masked, example = cut_attention
    assert programs.write(small, tmp_path / f"m.{format}", format, example) < 1e-5
    check_file(tmp_path / f"m.{format}", format, small, masked, example)


class Masked(nn.Module):
    """Sequence first, a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(5, 12), nn.Linear(12, 3)
        self.attention = nn.MultiheadAttention(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).transpose(0, 1)
        hidden = torch.ones(len(y), len(y), dtype=torch.bool).triu(1)
        mixed, _ = self.attention(y, y, y, attn_mask=hidden, need_weights=False)
        return self.out(y + mixed).transpose(0, 1)


@pytest.mark.parametrize("format", export.FORMATS)
def test_attention_of_torch_with_a_mask(tmp_path: Path, format: str) -> None:
    pytest.importorskip("onnxruntime")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, example = Masked().eval(), torch.randn(2, 6, 5)
    structure = trace(model, example)
    assert {"head", "head_dim"} <= set(structure.kinds), structure.frozen
    keep = every_second(structure)
    small = structure.cut(model, keep)
    assert programs.write(small, tmp_path / f"m.{format}", format, example) < 1e-5
    check_file(tmp_path / f"m.{format}", format, small, structure.mask(model, keep), example)


def tiny_vit() -> nn.Module:
    return VisionTransformer(16, 8, 2, 4, 16, 24, num_classes=5)


@pytest.mark.parametrize("format", export.FORMATS)
def test_artefact_without_a_block(tmp_path: Path, format: str) -> None:
    pytest.importorskip("onnxruntime")
    spec = ModelSpec(name=f"{__name__}:tiny_vit")
    model, example = build_model(spec, seed=1), torch.linspace(-1, 1, 2 * 3 * 256).reshape(2, 3, 16, 16)
    with torch.no_grad():
        model.heads.head.weight.copy_(torch.linspace(-1, 1, 80).reshape(5, 16))  # which starts at zero
    structure = trace(model, example)
    skip = ["encoder.layers.encoder_layer_0"]
    keep: dict[str, Any] = every_second(structure.without_blocks(skip))
    small = structure.cut(model, keep, skip)
    artefact.save(
        tmp_path,
        Compressed(model=small, selection=structure.selection(keep, skip), factors=()),
        Manifest(model=spec),
    )
    made = export.export(tmp_path, format, example)
    assert made.largest_difference < 1e-5
    masked = structure.without_blocks(skip).mask(structure.skip_blocks(model, skip), keep)
    check_file(made.path, format, artefact.load(tmp_path), masked, example)
