"""Exports agree with the model they come from, at batch sizes that the export has not seen."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from autoprune import artefact, export
from autoprune.artefact import Manifest
from autoprune.compressed import Compressed, factorise
from autoprune.errors import BadInput, MissingDependency
from autoprune.graph import trace
from autoprune.lowrank.tucker2 import Tucker2
from autoprune.models import build_model
from autoprune.programs import FORMATS
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


@pytest.mark.parametrize("format", FORMATS)
def test_agrees_and_is_small(folder: Path, format: str, capfd: pytest.CaptureFixture[str]) -> None:
    made = export.export(folder, format, EXAMPLE)
    assert made.path == folder / f"model.{format}"
    assert made.largest_difference <= made.tolerance == 1e-4
    assert made.base_weight_bytes is not None
    assert made.weight_bytes < 0.4 * made.base_weight_bytes
    assert made.file_bytes == made.path.stat().st_size < made.base_weight_bytes
    assert not list(folder.glob(".export*"))
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("format", FORMATS)
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


def test_unknown_format(folder: Path) -> None:
    with pytest.raises(BadInput, match="one of onnx, pt2, got 'tflite'"):
        export.export(folder, "tflite", EXAMPLE)


def test_missing_package_names_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"autoprune\[export\]") as caught:
        export.export(folder, "onnx", EXAMPLE)
    assert caught.value.exit_status == 2
