"""nn.Transformer and its parts as people call them: exact on torch's fused path too, with masks and with padding."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from autoprune.graph import Structure, trace

SOURCE = torch.tensor([[1, 2, 3, 4, 5, 0, 0], [3, 4, 5, 6, 7, 8, 9]])
TARGET = torch.tensor([[1, 2, 3, 4, 5, 0], [4, 5, 6, 7, 8, 9]])


# What torch says about its own ways.
pytestmark = [
    pytest.mark.filterwarnings("ignore:enable_nested_tensor is True"),
    pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
]


@pytest.fixture(autouse=True)
def _fused() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    yield
    torch.backends.mha.set_fastpath_enabled(before)


def axis_of_tokens(x: Tensor, batch_first: bool) -> Tensor:
    return x if batch_first else x.transpose(0, 1)


class Translator(nn.Module):
    """masks: none, those that torch compares with the causal one, or the causal one by name."""

    def __init__(self, batch_first: bool, norm_first: bool, masks: str) -> None:
        super().__init__()
        self.batch_first, self.masks = batch_first, masks
        self.source, self.target = nn.Embedding(11, 16), nn.Embedding(11, 16)
        # four heads of four dimensions each: sizes that can be taken for one another
        self.body = nn.Transformer(16, 4, 2, 2, 10, batch_first=batch_first, norm_first=norm_first)
        self.out = nn.Linear(16, 11)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        x, y = (axis_of_tokens(z, self.batch_first) for z in (self.source(source), self.target(target)))
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        options: dict[str, Any] = {}
        if self.masks == "compared":
            options = {"tgt_mask": causal, "tgt_key_padding_mask": target == 0}
            options |= {"src_key_padding_mask": source == 0, "memory_key_padding_mask": source == 0}
        elif self.masks == "named":
            options = {"tgt_mask": causal, "tgt_is_causal": True}
        return self.out(axis_of_tokens(self.body(x, y, **options), self.batch_first))


class Classifier(nn.Module):
    """Takes the mean over all tokens, padding too, as many do."""

    def __init__(self, norm: bool, activation: str = "relu") -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 16, padding_idx=0), nn.Linear(16, 3)
        layer = nn.TransformerEncoderLayer(16, 4, 10, batch_first=True, activation=activation)
        self.body = nn.TransformerEncoder(layer, 2, nn.LayerNorm(16) if norm else None)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x), src_key_padding_mask=x == 0).mean(1))


class Own(nn.TransformerEncoder):
    """With code of its own around torch's."""

    def forward(self, src: Tensor, **options: Any) -> Tensor:  # type: ignore[override]
        return super().forward(src, **options) + 1


def exact(
    model: nn.Module, structure: Structure, inputs: tuple[Tensor, ...], keep: dict[str, list[int]], fused: bool
) -> nn.Module:
    torch.backends.mha.set_fastpath_enabled(fused)
    double = copy.deepcopy(model).double()
    small, masked = structure.cut(double, keep), structure.mask(double, keep)
    with torch.no_grad():
        cut, full = small(*inputs), masked(*inputs)
    assert (cut - full).abs().max() <= 1e-9 * full.abs().max()
    return small


@pytest.mark.parametrize(
    ("batch_first", "norm_first", "masks"),
    list(itertools.product((True, False), (True, False), ("none", "compared", "named"))),
)
def test_every_attention_of_a_transformer_has_heads_of_its_own(batch_first: bool, norm_first: bool, masks: str) -> None:
    torch.manual_seed(0)
    model = Translator(batch_first, norm_first, masks).eval()
    structure = trace(model, (SOURCE, TARGET))
    attentions = [f"body.encoder.layers.{i}.self_attn" for i in range(2)]
    attentions += [f"body.decoder.layers.{i}.{kind}_attn" for i in range(2) for kind in ("self", "multihead")]
    expected = {f"{name}#{kind}": 4 for name in attentions for kind in ("head", "head_dim")}
    expected |= {f"body.{part}.layers.{i}.linear1": 10 for part in ("encoder", "decoder") for i in range(2)}
    assert dict(zip(structure.names, structure.group_sizes, strict=True)) == expected
    keep = {name: [0, 2, 3][: 2 + i % 2] for i, name in enumerate(structure.names)}
    exact(model, structure, (SOURCE, TARGET), keep, fused=True)
    small = exact(model, structure, (SOURCE, TARGET), keep, fused=False)
    with FlopCounterMode(display=False) as counter:
        small(SOURCE, TARGET)
    assert counter.get_total_flops() == 2 * structure.flops(keep)
    assert sum(p.numel() for p in small.parameters()) == structure.params(keep)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("layers", [(0, 1), (1,)])
def test_padding_is_zero_where_torch_makes_it_zero(layers: tuple[int, ...], norm: bool, activation: str) -> None:
    torch.manual_seed(0)
    model = Classifier(norm, activation).eval()
    structure = trace(model, SOURCE)
    keep = {f"body.layers.{i}.self_attn#{kind}": [1, 2, 3] for i in layers for kind in ("head", "head_dim")}
    exact(model, structure, (SOURCE,), keep, fused=False)
    small = exact(model, structure, (SOURCE,), keep, fused=True).float()
    with torch.no_grad():
        zeros = small(SOURCE)
        for again in (pickle.loads(pickle.dumps(small)), copy.deepcopy(small)):  # noqa: S301
            assert torch.equal(again(SOURCE), zeros)
    # torch makes no zeros while gradients are recorded
    small.requires_grad_(True)
    assert not torch.allclose(small(SOURCE), zeros)


def test_encoder_with_code_of_its_own_takes_no_nested_tensors() -> None:
    torch.manual_seed(0)
    model = Classifier(norm=True).eval()
    model.body.__class__ = Own
    structure = trace(model, SOURCE)
    keep = {"body.layers.0.self_attn#head": [0, 3]}
    small = exact(model, structure, (SOURCE,), keep, fused=False)
    assert not small.body.use_nested_tensor
    torch.backends.mha.set_fastpath_enabled(True)
    with torch.no_grad():
        assert small(SOURCE).isfinite().all()


def test_uncut_attention_is_left_to_torch() -> None:
    model = Classifier(norm=True).eval()
    small = trace(model, SOURCE).cut(model, {"body.layers.0.linear1": [0, 1]})
    assert type(small.body) is nn.TransformerEncoder
    assert small.body.use_nested_tensor
