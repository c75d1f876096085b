"""Global response normalisation: cut models divide by the number of channels that the full model has."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoprune.graph import Selection, apply_selection, trace
from autoprune.graph.bench import Bench
from autoprune.graph.resizing import divided
from autoprune.graph.tracer import as_inputs

from .networks import head, image


class Response(nn.Module):
    """x + weight * x * norm / mean of norms + bias, written in one of several ways."""

    def __init__(self, width: int, way: str) -> None:
        super().__init__()
        self.way, self.last = way, "last" in way
        shape = (1, 1, 1, width) if self.last else (1, width, 1, 1)
        self.weight, self.bias = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        positions, channels = ((1, 2), -1) if self.last else ((2, 3), 1)
        norm = x.norm(p=2, dim=positions, keepdim=True)
        if "function" in self.way:
            mean = torch.mean(norm, channels, True)
        elif "axis" in self.way:
            mean = norm.mean(axis=channels, keepdim=True)
        else:
            mean = norm.mean(dim=channels, keepdim=True)
        return x + self.weight * (x * norm / (mean + 1e-6)) + self.bias


class Network(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.LayerNorm(6)
        self.up, self.response, self.down = nn.Linear(6, 12), Response(12, way), nn.Linear(12, 6)
        self.head = head(6)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.gelu(self.up(self.norm(self.stem(x).permute(0, 2, 3, 1))))
        y = self.response(y) if self.response.last else self.response(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.head(self.down(y).permute(0, 3, 1, 2))


WAYS = ["last", "first", "last function", "first axis"]


@pytest.mark.parametrize("way", WAYS)
def test_hidden_channels_are_units_and_cuts_are_exact(way: str) -> None:
    torch.manual_seed(0)
    model = Network(way).eval()
    structure = trace(model, image())
    assert dict(zip(structure.names, structure.group_sizes, strict=True)) == {"up": 12, "down": 6}
    assert structure.verified == "float64"
    with torch.no_grad():
        bench = Bench.build(model, as_inputs(image()))
        for kept in ([0, 3, 4, 9, 11], [7]):
            small, masked = structure.cut(bench.model, {"up": kept}), structure.mask(bench.model, {"up": kept})
            torch.testing.assert_close(small(*bench.inputs[0]), masked(*bench.inputs[0]), rtol=1e-10, atol=1e-12)
            assert small.down.weight.shape == (6, len(kept))


def test_cut_twice_equals_cut_once_and_comes_back_from_plain_data() -> None:
    torch.manual_seed(0)
    model, x = Network("last").eval(), torch.randn(2, 3, 10, 10)
    structure = trace(model, image())
    first, second = [1, 2, 5, 7, 8, 10], [0, 3, 5]
    once = structure.cut(model, {"up": np.array(first)[second]})
    half = structure.cut(model, {"up": first})
    twice = structure.restrict({"up": first}).cut(half, {"up": second})
    data = json.loads(json.dumps(structure.selection({"up": np.array(first)[second]}).to_data()))
    rebuilt = apply_selection(copy.deepcopy(model), Selection.from_data(data))
    with torch.no_grad():
        for other in (twice, rebuilt, pickle.loads(pickle.dumps(once))):  # noqa: S301
            torch.testing.assert_close(other(x), once(x))


def test_cut_model_trains_and_exports() -> None:
    torch.manual_seed(0)
    model, x = Network("first").eval(), torch.randn(2, 3, 10, 10)
    small = trace(model, image()).cut(model, {"up": [0, 2, 3]})
    small.train()(x).sum().backward()
    assert all(p.grad is not None for p in small.parameters())
    with torch.no_grad():
        program = torch.export.export(small.eval(), (x,), strict=False).module()
        torch.testing.assert_close(program(x), small(x))


class Handmade(nn.Module):
    """A layer normalisation of single operators: what has no channel any more differs from the mean still."""

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        return centred / (centred.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()


def test_mean_of_anything_else_keeps_the_channels() -> None:
    structure = trace(nn.Sequential(nn.Conv2d(3, 8, 3), Handmade(), nn.Conv2d(8, 6, 3), head(6)).eval(), image())
    assert structure.names == ("2",)
    assert next(item for item in structure.frozen if item.name == "0").reason == "combines all channels"


def test_response_of_something_that_is_not_zero_is_frozen_with_the_reason() -> None:
    class Sigmoid(Network):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.sigmoid(self.up(self.norm(self.stem(x).permute(0, 2, 3, 1))))
            return self.head(self.down(self.response(y)).permute(0, 3, 1, 2))

    structure = trace(Sigmoid("last").eval(), image())
    assert structure.names == ("down",)
    item = next(item for item in structure.frozen if item.name == "up")
    assert "a mean divides by the number of all these channels" in item.reason
    assert "cut and masked outputs differ" in item.reason


@pytest.mark.parametrize(
    ("axis", "shape", "expected"),
    [(3, (1, 1, 1, 3), 0.25), (2, (1, 1, 3, 1), 1.0), (3, (1, 1, 1, 12), 1.0), (2, (1, 1, 3), 1.0)],
)
def test_share_of_the_length_that_is_left(axis: int, shape: tuple[int, ...], expected: float) -> None:
    rules = [(4, 3, (4, 4, 4), (1, 1, 1)), (4, 3, (0, 12, 0), (0, 3, 0))]
    assert divided(axis, shape, rules) == expected


class Both(nn.Module):
    """Two widths in one module: a cut model could not tell the one mean from the other when both have become alike."""

    def __init__(self, second: str) -> None:
        super().__init__()
        self.second = second
        self.a, self.b, self.out = nn.Linear(4, 12), nn.Linear(4, 20), nn.Linear(32, 6)
        self.inner = nn.Sequential(Mean())

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        norm = a.norm(dim=1, keepdim=True)
        if self.second == "before":
            b = b + x.mean(-1, keepdim=True)
        a = a * norm / (norm.mean(-1, keepdim=True) + 1e-6)
        if self.second == "response":
            norm = b.norm(dim=1, keepdim=True)
            b = b * norm / (norm.mean(-1, keepdim=True) + 1e-6)
        elif self.second == "after":
            b = b + x.mean(-1, keepdim=True)
        elif self.second == "inside":
            b = b + self.inner(x)
        return self.out(torch.cat([a, b], -1)).sum(1)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(-1, keepdim=True)


@pytest.mark.parametrize("second", ["", "before", "after", "inside", "response"])
def test_two_means_along_one_axis_keep_their_channels(second: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Both(second), nn.ReLU(), nn.Linear(6, 3)).eval()
    structure = trace(model, torch.zeros(2, 5, 4))
    assert ("0.a" in structure.names) == (not second)
    if second:
        reason = next(item for item in structure.frozen if item.name == "0.a").reason
        known = "one module takes the means of several numbers of channels"
        assert reason == ("combines all channels" if second == "before" else known)
