"""Sizes of attention in attributes of modules: which number follows which units."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoprune.graph import trace
from autoprune.graph.adapters.attention_sizes import sizes
from autoprune.graph.labels import Value
from autoprune.graph.relations import Operation

from ..transformers import Fused


class Held(nn.Module):
    def __init__(self, **held: int) -> None:
        super().__init__()
        self.__dict__.update(held)


def found(held: dict[str, int], shape: tuple[int, ...], labelled: tuple[int, ...]) -> dict[str, int]:
    """Attribute -> axis that it counts; the labels of axis i start at 100 i."""
    axes = tuple(100 * i + np.arange(n) if i in labelled else None for i, n in enumerate(shape))
    op = Operation("view", "aten.view.default", "", (), {}, (shape,))
    return {name: int(labels[0]) // 100 for name, labels in sizes(Held(**held), op, Value(shape, axes))}


@pytest.mark.parametrize(
    ("held", "shape", "labelled", "expected"),
    [
        ({"num_heads": 4, "head_dim": 6}, (2, 5, 4, 6), (2, 3), {"num_heads": 2, "head_dim": 3}),
        ({"num_heads": 3}, (2, 5, 3, 3, 8), (2, 3, 4), {"num_heads": 3}),
        ({"num_heads": 8}, (2, 5, 8, 8), (2, 3), {"num_heads": 2}),
        ({"num_heads": 4}, (9, 9, 4), (2,), {"num_heads": 2}),
        # batch and heads are one axis, and the last one has the size of the heads by chance
        ({"num_heads": 4}, (5, 8, 4), (1, 2), {}),
        ({"num_heads": 4}, (8, 5, 4), (0, 2), {}),
        ({"num_heads": 4}, (4, 5, 4), (0, 2), {"num_heads": 0}),
    ],
)
def test_attribute_counts_the_axis_of_its_size(
    held: dict[str, int], shape: tuple[int, ...], labelled: tuple[int, ...], expected: dict[str, int]
) -> None:
    assert found(held, shape, labelled) == expected


class Wide(nn.Module):
    """Keeps the heads of its layers as a number of its own."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.num_heads = 4
        self.layers, self.out = nn.Sequential(*(Fused(12, 4) for _ in range(layers))), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(x))


@pytest.mark.parametrize("layers", [1, 2])
def test_number_of_the_whole_model_does_not_tie_its_layers(layers: int) -> None:
    model = Wide(layers).eval()
    structure = trace(model, torch.zeros(2, 5, 12))
    heads = [name for name in structure.names if name.endswith("#head")]
    assert heads == [f"layers.{i}.qkv#head" for i in range(layers)]
    small = structure.cut(model, {heads[0]: [0, 3]})
    assert small.layers[0].num_heads == 2
    assert small.num_heads == (2 if layers == 1 else 4)
