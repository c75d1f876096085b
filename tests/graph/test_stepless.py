"""Shapes of recurrent layers: as torch's own steps have them, and only while an export asks."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from autoprune.graph import trace
from autoprune.graph.stepless import stepless

STEPS = 30


def exported(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return torch.export.export(model.eval(), (example,), strict=False)


def results(program: torch.export.ExportedProgram) -> list[object]:
    """Shape, strides and type of every result in the graph."""
    found: list[object] = []
    for node in program.graph.nodes:
        values = node.meta.get("val")
        for value in values if isinstance(values, list | tuple) else [values]:
            if isinstance(value, Tensor):
                found.append((node.name, tuple(value.shape), value.stride(), value.dtype))
    return found


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(("both", "layers"), [(False, 2), (True, 1)])
def test_an_export_is_the_one_without_it(kind: type[nn.RNNBase], first: bool, both: bool, layers: int) -> None:
    model = kind(8, 6, batch_first=first, bidirectional=both, num_layers=layers)
    example = torch.randn(3, 5, 8)
    with stepless():
        quick = exported(model, example)
    plain = exported(model, example)
    assert results(quick) == results(plain)
    assert str(quick.graph) == str(plain.graph)


def test_a_projected_lstm() -> None:
    model, example = nn.LSTM(8, 6, proj_size=4, bidirectional=True), torch.randn(3, 5, 8)
    with stepless():
        quick = exported(model, example)
    assert results(quick) == results(exported(model, example))


def test_values_stay_values() -> None:
    torch.manual_seed(0)
    model, example = nn.LSTM(8, 6).eval(), torch.randn(3, 5, 8)
    before = model(example)[0]
    with stepless():
        assert torch.equal(model(example)[0], before)
    # Whoever takes the layer apart afterwards gets its steps.
    steps = exported(model, example).run_decompositions()
    assert torch.allclose(steps.module()(example)[0], before)


class Mixer(nn.Module):
    """A residual block with a recurrent layer, whose FLOPs torch counts otherwise in float64."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.tokens = nn.LSTM(width, width // 2, batch_first=True, bidirectional=True)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm(x))[0]
        return x + self.down(torch.relu(self.up(x)))


def test_blocks_around_recurrent_layers_can_be_skipped() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), Mixer(16), Mixer(16), Mixer(16), nn.Linear(16, 3)).eval()
    structure = trace(model, torch.randn(1, STEPS, 5))
    assert [block.name for block in structure.blocks] == ["1", "2", "3"]
    assert "1.up" in structure.names
    assert any(item.operator == "aten.lstm.input" for item in structure.frozen)
