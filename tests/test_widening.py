"""A wider model runs, costs what the structure says, and begins with weights of the right scale."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from autoprune.cost import count_flops, count_params
from autoprune.errors import BadInput, UnknownName
from autoprune.graph import trace
from autoprune.models import build_model
from autoprune.widening import build, widen, widened_sizes

DIGITS = {"name": "digits_resnet", "arguments": {"num_classes": 10}}


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121", "resnext50_32x4d", "shufflenet_v2_x0_5"])
def test_costs_are_those_of_the_closed_form(name: str) -> None:
    model, x = build_model({"name": name}, 10), torch.randn(2, 3, 64, 64)
    structure = trace(model, x, verify=False)
    factors = {g.name: 1.5 for g in structure.groups[::2]}
    wide = widen(model, structure, factors)
    sizes_G = widened_sizes(structure, factors)
    assert wide.eval()(x).shape == (2, 10)
    assert count_flops(wide, x[:1]) == round(structure.total_flops(sizes_G)) > structure.flops()
    assert count_params(wide) == round(structure.total_params(sizes_G))


def test_sizes_by_hand() -> None:
    structure = trace(build_model(DIGITS), torch.zeros(2, 1, 8, 8), verify=False)
    sizes_G = widened_sizes(structure, {"layer2.conv1": 2, "conv1": 1.1})
    assert dict(zip(structure.names, sizes_G.tolist(), strict=True)) == {
        "conv1": 18, "layer1.conv1": 16, "layer2.conv1": 64, "layer2.conv2": 32, "layer3.conv1": 64, "layer3.conv2": 64
    }  # fmt: skip
    with pytest.raises(BadInput, match=r"factors\[conv1\] must be at least 1, got 0.5"):
        widened_sizes(structure, {"conv1": 0.5})
    with pytest.raises(UnknownName):
        widened_sizes(structure, {"conv9": 2})


def test_without_factors_nothing_changes() -> None:
    model, x = build_model(DIGITS), torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(widen(model, trace(model, x, verify=False), {})(x), model(x))


def test_new_weights_are_drawn_by_the_models_own_rule() -> None:
    """torch's default: uniform with variance 1 / (3 * fan_in); norms start as ever, and no entry stays from before."""
    wide = build(DIGITS, {"layer2.conv1": 2}, [1, 8, 8])
    for conv in (wide.get_submodule("layer2.conv1"), wide.get_submodule("layer2.conv2")):
        assert isinstance(conv, nn.Conv2d)
        expected = math.sqrt(1 / (3 * 9 * conv.in_channels))
        assert float(conv.weight.detach().std()) == pytest.approx(expected, rel=0.05)
        rows = conv.weight.detach().flatten(1)
        assert len(torch.unique(rows, dim=0)) == len(rows)
    norm = wide.get_submodule("layer2.bn1")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.weight.shape == (64,)
    assert norm.weight.eq(1).all()


def test_the_seed_decides_the_weights() -> None:
    spec = {
        "name": "autoprune.widening:build",
        "arguments": {"model": DIGITS, "factors": {"conv1": 2}, "shape": [1, 8, 8]},
    }
    first, again, other = (build_model(spec, seed=seed).state_dict()["conv1.weight"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


class Fixed(nn.Module):
    """Code that fixes a width."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 1), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.first(x).view(len(x), 4, -1).mean(2))
        return out


def test_a_model_whose_code_fixes_a_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoprune.widening.build_model", lambda model, seed: Fixed().eval())
    with pytest.raises(BadInput, match=r"does not run with factors.*leave that one out"):
        build({"name": "fixed"}, {"first": 2}, [1, 3, 3])
