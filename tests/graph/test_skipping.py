"""The model without some of its blocks: stand-ins, storage, selections, exports."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from autoprune.errors import BadInput, UnknownName, WrongArtefact
from autoprune.graph import Selection, Skipped, Structure, apply_selection, trace

from .blocknets import (
    draw,
    names,
    seeded,
    traced,
)


class Layer(nn.Module):
    """Two branches with layer scale, dropout and stochastic depth; a mask and the input by keyword."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)
        self.gamma = nn.Parameter(torch.full((width,), 1e-4))
        self.drop, self.depth = nn.Dropout(0.5), StochasticDepth(0.5, "row")

    def forward(self, mask: Tensor, *, x: Tensor) -> Tensor:
        x = x + self.depth(self.gamma * self.drop(self.first(self.norm(x)) * mask))
        return self.drop(self.second(torch.tanh(x))) + x


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
        self.layers = nn.ModuleList(Layer(8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        mask = (x.sum(-1, keepdim=True) > 0).to(x.dtype)
        x = self.embed(x)
        for layer in self.layers:
            x = layer(mask, x=x)
        return self.head(x)


def test_stand_in_takes_the_arguments_of_its_block() -> None:
    model = seeded(Masked)
    structure = trace(model, torch.randn(2, 7, 5))
    assert names(structure) == ["layers.0", "layers.1", "layers.2"]
    less = structure.skip_blocks(model, ["layers.1"])
    assert repr(less.layers[1]) == "Skipped(Layer, argument='x')"  # type: ignore[index]
    assert less(torch.randn(2, 7, 5)).shape == (2, 7, 3)


def test_residual_wrappers_are_blocks_and_their_sequences_are_not() -> None:
    class Adds(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return x + self.inner(x)

    def pair() -> nn.Module:
        mlp = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
        return nn.Sequential(Adds(nn.Linear(8, 8)), Adds(mlp))

    model = seeded(lambda: nn.Sequential(nn.Linear(4, 8), pair(), Adds(pair()), nn.Linear(8, 2)))
    assert names(trace(model, torch.zeros(1, 4))) == ["1.0", "1.1", "2.inner.0", "2.inner.1"]


def test_all_blocks_gone_still_trains() -> None:
    for name in ("resnet18", "swin"):
        model, inputs, structure = traced(name)
        small = structure.skip_blocks(model, names(structure)).train()
        small(torch.cat([inputs, inputs + 1])).sum().backward()
        assert all(p.grad is not None for p in small.parameters())
        assert model.training is False


# ---- storage and mistakes


def test_json_and_pickle_keep_blocks() -> None:
    structure = traced("swin")[2].without_blocks(["features.1.1"])
    for again in (Structure.from_json(structure.to_json()), pickle.loads(pickle.dumps(structure))):  # noqa: S301 - our own bytes
        assert again.to_json() == structure.to_json()
        assert again.blocks == structure.blocks
        assert again.skipped == ("features.1.1",)
    rows = json.loads(json.dumps(structure.describe()))
    assert [row["name"] for row in rows["blocks"]] == ["features.1.0", "features.3.0", "features.3.1"]
    assert structure.fingerprint != traced("swin")[2].fingerprint


def test_selection_rebuilds_the_model_in_a_fresh_process() -> None:
    structure = traced("vit")[2]
    skip, keep = draw(structure, 3)
    skip = skip or names(structure)[:1]
    keep = {name: kept for name, kept in keep.items() if name in structure.without_blocks(skip).names}
    data = json.dumps(structure.selection(keep, skip).to_data())
    code = (
        "import json, sys, torch, torchvision\n"
        "from autoprune.graph import apply_selection\n"
        "model = torchvision.models.VisionTransformer(32, 8, 3, 4, 16, 32, num_classes=5)\n"
        "small = apply_selection(model, json.load(sys.stdin))\n"
        "print(sum(p.numel() for p in small.parameters()), tuple(small.eval()(torch.zeros(2, 3, 32, 32)).shape))"
    )
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True, text=True)
    assert done.stdout.split(maxsplit=1) == [str(structure.without_blocks(skip).params(keep)), "(2, 5)\n"]
    again = Selection.from_data(json.loads(data))
    assert again.skipped == dict.fromkeys(skip, 0)


def test_mistakes_are_named() -> None:
    model, _, structure = traced("resnet18")
    with pytest.raises(UnknownName, match=r"Did you mean 'layer1\.1'"):
        structure.without_blocks(["layer1.7"])
    with pytest.raises(BadInput, match=r"block 'layer2.0' cannot be skipped: conv2d \(layer2.0.downsample.0\)"):
        structure.skip_blocks(model, ["layer2.0"])
    with pytest.raises(BadInput, match=r"write \('layer1.1',\)"):
        structure.without_blocks("layer1.1")
    with pytest.raises(UnknownName, match=r"layer1\.1\.conv1"):
        structure.cut(model, {"layer1.1.conv1": [0]}, ["layer1.1"])
    with pytest.raises(WrongArtefact, match=r"no module 'layer9\.1', which is to be skipped"):
        apply_selection(model, {"kept": {}, "attributes": {}, "shapes": {}, "skipped": {"layer9.1": 0}})
    with pytest.raises(WrongArtefact, match="a position or a name"):
        Selection.from_data({"kept": {}, "attributes": {}, "shapes": {}, "skipped": {"a": 1.5}})


def test_stand_in_exports() -> None:
    model, inputs, structure = traced("resnet18")
    small = structure.skip_blocks(model, ["layer1.0"])
    assert isinstance(small.layer1[0], Skipped)  # type: ignore[index]
    program = torch.export.export(small, (inputs,), strict=False)
    assert torch.equal(program.module()(inputs), small(inputs))
