"""Heads, dimensions inside heads and hidden widths: exact cuts at the predicted cost."""

from __future__ import annotations

import copy
import json
import pickle
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from autoprune.graph import Selection, Structure, apply_selection, trace
from autoprune.graph.bench import Bench
from autoprune.graph.resizing import corrected
from autoprune.graph.tracer import as_inputs

from .transformers import ATTENTION, Grouped, transformer


@cache
def traced(name: str) -> tuple[nn.Module, Any, Structure]:
    model, example = transformer(name)
    return model, example, trace(model, example)


def random_keep(structure: Structure, seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        name: np.sort(generator.choice(size, int(generator.integers(1, size + 1)), replace=False))
        for name, size in zip(structure.names, structure.sizes.tolist(), strict=True)
    }


@pytest.mark.parametrize("name", ATTENTION)
def test_heads_dimensions_and_hidden_widths_are_units(name: str) -> None:
    _, _, structure = traced(name)
    kinds = {kind: [g.size for g in structure.groups if g.kind == kind] for kind in structure.kinds}
    assert kinds["head"] == [4, 4]
    assert set(kinds["head_dim"]) == ({6} if name == "separate" else {3})
    assert kinds["channel"] == [9, 10]
    assert {item.operator for item in structure.frozen} == {"output", "aten.layer_norm.default"}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ATTENTION)
def test_cut_equals_masked_and_costs_what_the_plan_says(name: str, seed: int) -> None:
    model, example, structure = traced(name)
    keep = random_keep(structure, seed)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        bench = Bench.build(model, as_inputs(example))
        small, masked = structure.cut(bench.model, keep), structure.mask(bench.model, keep)
        with FlopCounterMode(display=False) as counter:
            cut = small(*bench.inputs[0])
        full = masked(*bench.inputs[0])
    assert (cut - full).abs().max() <= 1e-9 * full.abs().max()
    assert sum(p.numel() for p in small.parameters()) == structure.params(keep)
    if all(len(kept) > 1 for kept in keep.values()):
        assert counter.get_total_flops() == structure.flops(keep)


@pytest.mark.parametrize("name", ATTENTION)
def test_cut_model_copies_pickles_trains_and_is_rebuilt_from_plain_data(name: str) -> None:
    model, example, structure = traced(name)
    keep = random_keep(structure, 5)
    small = structure.cut(model, keep)
    data = json.loads(json.dumps(structure.selection(keep).to_data()))
    rebuilt = apply_selection(copy.deepcopy(model), Selection.from_data(data))
    rebuilt.load_state_dict(small.state_dict())
    expected = small(example)
    for other in (rebuilt, copy.deepcopy(small), pickle.loads(pickle.dumps(small))):  # noqa: S301
        assert torch.equal(other(example), expected)
    small.train()(torch.cat([example, example])).sum().backward()
    assert all(p.grad is not None for p in small.parameters())
    assert type(structure.cut(small, None)) is type(small)


@pytest.mark.parametrize("name", ATTENTION)
def test_structure_survives_json_and_restriction(name: str) -> None:
    model, example, structure = traced(name)
    first, second = {n: list(range(0, s, 2)) for n, s in zip(structure.names, structure.sizes, strict=True)}, 0.5
    again = Structure.from_json(structure.to_json())
    assert again.to_json() == structure.to_json()
    small, rest = again.cut(model, first), again.restrict(first)
    assert rest.flops() == structure.flops(first)
    smaller = rest.cut(small, second)
    kept = {n: [first[n][i] for i in range(max(1, len(first[n]) // 2))] for n in structure.names}
    torch.testing.assert_close(smaller(example), structure.cut(model, kept)(example))
    assert rest.flops(second) == structure.flops(kept)


def test_groups_of_a_group_normalisation_are_units() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, example = Grouped().eval(), torch.randn(1, 3, 6, 6)
    structure = trace(model, example)
    assert dict(zip(structure.names, structure.group_sizes, strict=True)) == {"stem": 4, "body": 3}
    small = structure.cut(model, {"stem": [1, 2], "body": [0, 2]})
    assert (small.first.num_groups, small.first.num_channels, small.second.num_groups) == (2, 4, 2)
    assert small(example).shape == (1, 5)


def test_encoder_layer_of_torch_is_exact_in_every_mode() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(12, 4, 20, dropout=0.0, batch_first=True)
        model = nn.Sequential(nn.Linear(5, 12), layer, nn.Linear(12, 3)).eval()
        example = torch.randn(2, 6, 5)
    structure = trace(model, example)
    assert {"head", "head_dim", "channel"} == set(structure.kinds)
    keep = random_keep(structure, 3)
    small, masked = structure.cut(model, keep), structure.mask(model, keep)
    with torch.no_grad():
        torch.testing.assert_close(small(example), masked(example))
    torch.testing.assert_close(small(example), masked(example))


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        ((2, 5, 12), 60, (2, 5, 6)),
        ((2, 5, 12), 120, (2, 5, 12)),
        ((-1, 5, 12), 60, (-1, 5, 6)),
        ((2, 5, -1), 60, (2, 5, -1)),
        ((2, 5, 11), 60, (2, 5, 11)),
        ((2, 12), 12, (2, 12)),
    ],
)
def test_views_ask_for_what_is_left(sizes: tuple[int, ...], count: int, expected: tuple[int, ...]) -> None:
    assert corrected(sizes, count, [(3, ((2, 12, 6),)), (3, ((2, 12, 12),))]) == expected
