"""Exports agree with the model they come from, at batch sizes that the export has not seen."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from autoprune import artefact, export
from autoprune.artefact import Manifest
from autoprune.compressed import Compressed, factorise
from autoprune.errors import BadInput, CheckFailed, Failure, MissingDependency
from autoprune.graph import trace
from autoprune.lowrank.tucker2 import Tucker2
from autoprune.models import build_model
from autoprune.specs import ModelSpec

SPEC = ModelSpec(name="digits_resnet", arguments={"num_classes": 10})
EXAMPLE = torch.linspace(-1, 1, 2 * 64).reshape(2, 1, 8, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = build_model(SPEC, seed=1)
    structure = trace(model, EXAMPLE)
    small = Compressed(model=structure.cut(model, 0.5), selection=structure.selection(0.5), factors=())
    place = tmp_path_factory.mktemp("artefact")
    artefact.save(place, small, Manifest(model=SPEC))
    return place


@pytest.mark.parametrize("format", export.FORMATS)
def test_agrees_and_is_small(folder: Path, format: str, capfd: pytest.CaptureFixture[str]) -> None:
    made = export.export(folder, format, EXAMPLE)
    assert made.path == folder / f"model.{format}"
    assert made.largest_difference <= made.tolerance == 1e-4
    assert made.base_weight_bytes is not None
    assert made.weight_bytes < 0.4 * made.base_weight_bytes
    assert made.file_bytes == made.path.stat().st_size < made.base_weight_bytes
    assert not list(folder.glob(".export*"))
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("format", export.FORMATS)
def test_layers_of_three_factors_go_out_as_they_are(tmp_path: Path, format: str) -> None:
    model = build_model(SPEC, seed=1)
    structure = trace(model, EXAMPLE)
    small = structure.cut(model, 0.5)
    factors = factorise(small, Tucker2(), {"layer2.conv1": 3, "layer3.conv2": 4})
    artefact.save(
        tmp_path, Compressed(model=small, selection=structure.selection(0.5), factors=factors), Manifest(model=SPEC)
    )
    made = export.export(tmp_path, format, EXAMPLE)
    assert made.largest_difference <= made.tolerance


def test_onnx_takes_any_batch_size(folder: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    made = export.export(folder, "onnx", EXAMPLE)
    session = onnxruntime.InferenceSession(str(made.path), providers=["CPUExecutionProvider"])
    batch = torch.linspace(0, 1, 5 * 64).reshape(5, 1, 8, 8)
    (found,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(found), artefact.load(folder)(batch), atol=1e-5)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        return {"sum": self.linear(left) + self.linear(right), "left": self.linear(left)}


@pytest.mark.parametrize("format", export.FORMATS)
@pytest.mark.parametrize("keyword", [False, True])
def test_several_inputs_and_outputs(tmp_path: Path, format: str, keyword: bool) -> None:
    left, right = torch.ones(1, 4), torch.zeros(1, 4)
    inputs = {"left": left, "right": right} if keyword else (left, right)
    assert export.write(TwoInputs(), tmp_path / f"m.{format}", format, inputs) < 1e-5


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1) * 2


def test_fixed_batch_size_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="FixedBatch cannot be exported as pt2"):
        export.write(FixedBatch(), tmp_path / "m.pt2", "pt2", torch.ones(2, 4))


def test_difference_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_write_pt2", lambda *_: lambda x: [x * 1.001])
    with pytest.raises(CheckFailed, match=r"differs from the model by 0\.001.*allowed is 0\.0001"):
        export.write(nn.Identity(), tmp_path / "m.pt2", "pt2", torch.ones(2, 3))


def test_other_shapes_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_write_pt2", lambda *_: lambda x: [x[:1]])
    with pytest.raises(CheckFailed, match=r"batch size 3.*\(1, 4\).*\(3, 4\)"):
        export.write(nn.Identity(), tmp_path / "m.pt2", "pt2", torch.ones(2, 4))


def test_file_that_did_not_shrink_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"0" * 3_000_000)
    with pytest.raises(CheckFailed, match=r"3000000 bytes.*only 100;"):
        export._check_size(tmp_path / "m", 100)


def test_unknown_format(folder: Path) -> None:
    with pytest.raises(BadInput, match="one of onnx, pt2, got 'tflite'"):
        export.export(folder, "tflite", EXAMPLE)


def test_missing_package_names_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"autoprune\[export\]") as caught:
        export.export(folder, "onnx", EXAMPLE)
    assert caught.value.exit_status == 2
