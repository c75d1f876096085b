"""Splits, slices and narrows whose sizes stand in Python code follow a cut; the rules for them, by hand."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoprune.graph import Structure, apply_selection, trace
from autoprune.graph.resizing import shares, sliced

from .networks import head


class Hierarchy(nn.Module):
    """As in Res2Net: parts of one width, each added to the result of the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 4
        self.first, self.last = nn.Conv2d(5, 12, 1), nn.Conv2d(12, 5, 1)
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(self.first(x).relu(), self.width, 1)
        one = self.convs[0](parts[0])
        two = self.convs[1](one + parts[1])
        return x + self.last(torch.cat([one, two, parts[2]], 1))


class Gated(nn.Module):
    """As in MambaOut: unequal parts, one of them filtered."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv, self.last = (
            nn.Conv2d(5, 16, 1),
            nn.Conv2d(3, 3, 3, padding=1, groups=3),
            nn.Conv2d(8, 5, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        gate, same, filtered = self.first(x).split((8, 5, 3), dim=-3)
        return x + self.last(gate.relu() * torch.cat([same, self.conv(filtered)], 1))


class Sliced(nn.Module):
    """Ranges by brackets, one of them counted from the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.body, self.last = nn.Conv2d(5, 10, 1), nn.Conv2d(6, 4, 1), nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return x + self.last(self.body(y[:, :6]) + y[:, -4:, ...])


class Narrowed(Sliced):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return x + self.last(self.body(y.narrow(1, 0, 6)) + torch.narrow(y, 1, -4, 4))


class Heads(nn.Module):
    """As in TinyViT: q, k and v split inside each head."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.key_dim, self.value_dim = 2, 3, 5
        self.qkv, self.proj = nn.Linear(5, 2 * 11), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        qkv = self.qkv(tokens).view(n, h * w, self.heads, -1)
        q, k, v = qkv.split([self.key_dim, self.key_dim, self.value_dim], dim=3)
        scores = torch.einsum("nqhd,nkhd->nhqk", q, k).softmax(-1)
        mixed = torch.einsum("nhqk,nkhd->nqhd", scores, v).reshape(n, h * w, self.heads * self.value_dim)
        return x + self.proj(mixed).transpose(1, 2).reshape(n, c, h, w)


BLOCKS: dict[Callable[[], nn.Module], set[int]] = {
    Hierarchy: {4},
    Gated: {5, 3},
    Sliced: {6, 4},
    Narrowed: {6, 4},
    Heads: {2, 3, 5},
}
"""Blocks, and sizes of the groups that only corrected code can cut."""


@pytest.fixture(params=list(BLOCKS), ids=lambda block: block.__name__)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, Structure, set[int]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 5, 3), request.param(), request.param(), head(5)).eval().double()
        example = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    return model, example, trace(model, example), BLOCKS[request.param]


def keep(structure: Structure, seed: int = 0) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return {g.name: np.sort(generator.choice(g.size, g.size // 2, replace=False)) for g in structure.groups}


def test_parts_are_cut_exactly(case: tuple[nn.Module, Tensor, Structure, set[int]]) -> None:
    model, example, structure, sizes = case
    assert sizes <= set(structure.group_sizes)
    assert structure.resized == ("1", "2")
    for seed in range(3):
        chosen = keep(structure, seed)
        with torch.no_grad():
            small, masked = structure.cut(model, chosen), structure.mask(model, chosen)
            torch.testing.assert_close(small(example), masked(example), rtol=1e-10, atol=1e-12)
        assert sum(p.numel() for p in small.parameters()) == structure.params(chosen)


def test_cut_survives_storage(case: tuple[nn.Module, Tensor, Structure, set[int]]) -> None:
    model, example, structure, _ = case
    again = Structure.from_json(structure.to_json())
    chosen = keep(structure)
    small = structure.cut(model, chosen)
    data = json.loads(json.dumps(again.selection(chosen).to_data()))
    with torch.no_grad():
        expected = small(example)
        for other in (
            apply_selection(copy.deepcopy(model), data),
            pickle.loads(pickle.dumps(small)),  # noqa: S301
            copy.deepcopy(small),
            torch.export.export(small, (example,)).module(),
            torch.compile(small, backend="eager"),
        ):
            torch.testing.assert_close(other(example), expected)


def test_a_cut_model_is_cut_again(case: tuple[nn.Module, Tensor, Structure, set[int]]) -> None:
    model, example, structure, _ = case
    first = {g.name: np.arange(g.size - 1) for g in structure.groups}
    second = structure.restrict(first)
    small = second.cut(structure.cut(model, first), {name: [0] for name in second.names})
    direct = structure.cut(model, {name: [0] for name in structure.names})
    with torch.no_grad():
        torch.testing.assert_close(small(example), direct(example))


RULES = [
    (4, 1, (0, 4, 8), (0, 3, 3)),
    (4, 1, (4, 4, 4), (3, 2, 1)),
    (4, 1, (8, 4, 0), (5, 1, 0)),
]
"""Twelve channels in three parts of four, of which 3, 2 and 1 are left."""


def test_shares_of_a_split() -> None:
    assert shares([4], True, (4, 1, 6), RULES) == [3, 2, 1]
    assert shares([4, 4, 4], False, (4, 1, 6), RULES) == [3, 2, 1]
    # Another length, another axis, other sizes: not this split.
    assert shares([4], True, (4, 1, 12), RULES) is None
    assert shares([4], True, (4, 2, 6), RULES) is None
    assert shares([6, 6], False, (4, 1, 6), RULES) is None


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ((slice(None), slice(None, 4)), (slice(None), slice(0, 3))),
        ((slice(None), slice(-8, -4)), (slice(None), slice(3, 5))),
        ((..., slice(8, None), slice(None), slice(None)), (..., slice(5, 6), slice(None), slice(None))),
        ((0, None, slice(4, 8)), (0, None, slice(3, 5))),
        ((slice(None), slice(2, 5)), (slice(None), slice(2, 5))),
        ((slice(None, 4),), (slice(None, 4),)),
    ],
)
def test_slices_take_what_is_left(index: Any, expected: Any) -> None:
    assert sliced(index, (2, 6, 5, 5), RULES) == expected
