"""nn.MultiheadAttention in all the ways in which it is called: cut heads and dimensions, exact against masked ones."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from autoprune.graph import trace
from autoprune.graph.bench import Bench
from autoprune.graph.tracer import as_inputs

WIDTH, HEADS = 16, 4


@dataclasses.dataclass(frozen=True)
class How:
    """How attention is called. keys, values: distinct from the queries; weights: "", "mean" or "each" head's."""

    keys: bool = False
    values: bool = False
    weights: str = ""
    other_width: bool = False
    bias: bool = True


class Net(nn.Module):
    def __init__(self, how: How) -> None:
        super().__init__()
        self.how = how
        other = 12 if how.other_width else WIDTH
        self.embed = nn.Linear(6, WIDTH)
        self.keys = nn.Linear(6, other)
        self.values = nn.Linear(6, other)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, bias=how.bias, kdim=other, vdim=other)
        self.out = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        query = self.embed(x)
        key = self.keys(x.flip(1)[:, 1:]) if self.how.keys else query
        value = self.values(x.flip(1)[:, 1:]) if self.how.values else key
        found, _ = self.attention(
            query, key, value, need_weights=bool(self.how.weights), average_attn_weights=self.how.weights == "mean"
        )
        return self.out(torch.relu(query + found))


WAYS = [
    How(weights="mean"),
    How(weights="each"),
    How(keys=True),
    How(keys=True, weights="mean"),
    How(keys=True, values=True),
    How(keys=True, values=True, weights="each"),
    How(keys=True, values=True, bias=False),
    How(keys=True, values=True, other_width=True),
    How(keys=True, other_width=True, weights="mean"),
]


@pytest.mark.parametrize("how", WAYS, ids=str)
def test_heads_and_their_dimensions_are_cut_exactly(how: How) -> None:
    torch.manual_seed(0)
    model, example = Net(how).eval(), torch.randn(2, 5, 6)
    structure = trace(model, example)
    units = dict(zip(structure.names, structure.group_sizes, strict=True))
    mine = [name for name in units if name.startswith("attention")]
    # Four heads, four dimensions in each; values have dimensions of their own where they have a weight of their own.
    assert [units[name] for name in mine] == [4, 4] if not how.other_width else [4, 4, 4]
    keep = {name: [0, 2, 3] for name in mine}
    with torch.no_grad():
        bench = Bench.build(model, as_inputs(example))
        small, masked = structure.cut(bench.model, keep), structure.mask(bench.model, keep)
        torch.testing.assert_close(small(*bench.inputs[0]), masked(*bench.inputs[0]), rtol=1e-10, atol=1e-12)
        assert not torch.allclose(masked(*bench.inputs[0]), bench.model(*bench.inputs[0]))
        cut = structure.cut(model, keep)
        with FlopCounterMode(display=False) as counter:
            cut(example)
    assert counter.get_total_flops() == 2 * structure.flops(keep)
    assert sum(p.numel() for p in cut.parameters()) == structure.params(keep)


class Shown(Net):
    """Its weights, the mean or each head's, are a second output."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        query = self.embed(x)
        found, weights = self.attention(query, query, query, average_attn_weights=self.how.weights == "mean")
        return self.out(torch.relu(query + found)), weights


class Picked(Net):
    """Goes on with the mean of the weights, or with those of one head."""

    def forward(self, x: Tensor) -> Tensor:
        query = self.embed(x)
        found, weights = self.attention(query, query, query, average_attn_weights=self.how.weights == "mean")
        weights = weights if self.how.weights == "mean" else weights[:, 0]
        return self.out(torch.relu(query + found + weights @ query))


class PerHead(Net):
    """A mask for each head, made in the code."""

    def forward(self, x: Tensor) -> Tensor:
        query, tokens = self.embed(x), x.shape[1]
        mask = torch.zeros(x.shape[0] * HEADS, tokens, tokens)
        return self.out(query + self.attention(query, query, query, need_weights=False, attn_mask=mask)[0])


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("kind", "weights", "operator", "reason"),
    [
        (Shown, "mean", "aten.mean.dim", "combines all channels"),
        (Shown, "each", "output", "output of the network"),
        (Picked, "mean", "aten.mean.dim", "combines all channels"),
        (Picked, "each", "aten.select.int", "a fixed index picks one of these channels"),
        (PerHead, "", "aten.scaled_dot_product_attention.default", "masked per head by something fixed"),
    ],
)
def test_heads_that_stay_are_reported_with_the_reason(
    kind: type[Net], weights: str, operator: str, reason: str, batch: int
) -> None:
    structure = trace(kind(How(weights=weights)).eval(), torch.randn(batch, 5, 6))
    sizes = dict(zip(structure.names, structure.group_sizes, strict=True))
    assert {name: size for name, size in sizes.items() if name.startswith("attention")} == {"attention#head_dim": 4}
    (item,) = (item for item in structure.frozen if item.name == "attention#head")
    assert (item.size, item.operator, item.reason) == (HEADS, operator, reason)


def test_decoder_layer() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerDecoderLayer(16, 4, 24, batch_first=True).eval()
    structure = trace(layer, (torch.randn(2, 5, 16), torch.randn(2, 4, 16)))
    expected = {"self_attn#head_dim": 4, "self_attn#head": 4, "multihead_attn#head_dim": 4, "multihead_attn#head": 4}
    assert dict(zip(structure.names, structure.group_sizes, strict=True)) == expected | {"linear1": 24}
