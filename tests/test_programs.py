"""Files that models are written to, loaded again and compared."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from autoprune import programs
from autoprune.errors import CheckFailed, Failure


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        return {"sum": self.linear(left) + self.linear(right), "left": self.linear(left)}


@pytest.mark.parametrize("format", programs.FORMATS)
@pytest.mark.parametrize("keyword", [False, True])
def test_several_inputs_and_outputs(tmp_path: Path, format: str, keyword: bool) -> None:
    left, right = torch.ones(1, 4), torch.zeros(1, 4)
    inputs = {"left": left, "right": right} if keyword else (left, right)
    assert programs.write(TwoInputs(), tmp_path / f"m.{format}", format, inputs) < 1e-5


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1) * 2


def test_fixed_batch_size_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="FixedBatch cannot be exported as pt2"):
        programs.write(FixedBatch(), tmp_path / "m.pt2", "pt2", torch.ones(2, 4))


def test_difference_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_write_pt2", lambda *_: lambda x: [x * 1.001])
    with pytest.raises(CheckFailed, match=r"differs from the model by 0\.001.*allowed is 0\.0001"):
        programs.write(nn.Identity(), tmp_path / "m.pt2", "pt2", torch.ones(2, 3))


def test_other_shapes_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_write_pt2", lambda *_: lambda x: [x[:1]])
    with pytest.raises(CheckFailed, match=r"batch size 3.*\(1, 4\).*\(3, 4\)"):
        programs.write(nn.Identity(), tmp_path / "m.pt2", "pt2", torch.ones(2, 4))


def test_file_that_did_not_shrink_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"0" * 3_000_000)
    with pytest.raises(CheckFailed, match=r"3000000 bytes.*only 100;"):
        programs.check_size(tmp_path / "m", 100)


def test_an_onnx_file_is_a_module_again(tmp_path: Path) -> None:
    torch_model = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.ReLU()).eval()
    path, batch = tmp_path / "m.onnx", torch.linspace(-1, 1, 42).reshape(7, 2, 3)
    programs.write(torch_model, path, "onnx", batch[:2])
    for file in (path, path.read_bytes()):
        model = programs.OnnxModel(file, threads=1)
        assert torch.allclose(model(batch), torch_model(batch), atol=1e-6)
        assert not list(model.parameters())


def test_several_outputs_come_as_a_tuple(tmp_path: Path) -> None:
    model, left, right = TwoInputs().eval(), torch.ones(3, 4), torch.arange(12.0).reshape(3, 4)
    programs.write(model, tmp_path / "m.onnx", "onnx", {"left": left, "right": right})
    again = programs.OnnxModel(tmp_path / "m.onnx")
    found, expected = again(right=right, left=left), model(left, right)
    assert isinstance(found, tuple)
    assert torch.allclose(found[0], expected["sum"], atol=1e-5)
    assert torch.allclose(found[1], expected["left"], atol=1e-6)
