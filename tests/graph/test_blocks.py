"""Blocks of published models: which can be skipped, and that the model without them is what was promised."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from autoprune.graph import trace
from autoprune.graph.bench import Bench
from autoprune.graph.tracer import as_inputs
from autoprune.models import build_model
from autoprune.specs import ModelSpec

from .blocknets import (
    FIRST,
    MODELS,
    counted,
    draw,
    image,
    names,
    parameters,
    reasons,
    seeded,
    traced,
)


@pytest.mark.parametrize("name", MODELS)
def test_blocks_of_published_models(name: str) -> None:
    _, _, structure = traced(name)
    assert names(structure) == MODELS[name][2]
    assert [block.name for block in structure.blocks if block.first] == FIRST[name]


def test_reasons_of_published_models() -> None:
    assert reasons(traced("resnet18")[2]) == {
        f"layer{i}.0": f"conv2d (layer{i}.0.downsample.0) is on the shortcut" for i in (2, 3, 4)
    }
    assert set(reasons(traced("mobilenet_v2")[2]).values()) == {"nothing goes around it"}
    assert not reasons(traced("vit")[2])


@pytest.mark.parametrize("name", MODELS)
def test_every_block_costs_what_it_says(name: str) -> None:
    model, inputs, structure = traced(name)
    for block in structure.blocks:
        less, small = structure.without_blocks([block.name]), structure.skip_blocks(model, [block.name])
        assert less.flops() == counted(small, inputs) == structure.flops() - round(block.flops)
        assert less.params() == parameters(small) == structure.params() - block.params


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vit", "swin", "convnext"])
def test_blocks_and_channels_together(name: str, seed: int) -> None:
    model, inputs, structure = traced(name)
    skip, keep = draw(structure, seed)
    less = structure.without_blocks(skip)
    small = structure.cut(model, keep, skip)
    assert less.flops(keep) == counted(small, inputs)
    assert less.params(keep) == parameters(small)
    # skipping and cutting commute
    inner = {group: keep[group] for group in less.names}
    other = structure.restrict(inner).without_blocks(skip)
    assert other.names == less.names
    assert (other.flops(), other.params()) == (less.flops(keep), less.params(keep))
    later = other.cut(structure.restrict(inner).skip_blocks(structure.cut(model, inner), skip), None)
    assert [p.shape for p in later.parameters()] == [p.shape for p in small.parameters()]
    assert less.restrict(keep).flops() == less.flops(keep)
    # masked equals cut, in double precision
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        bench = Bench.build(model, as_inputs(inputs))
        masked = less.mask(structure.skip_blocks(bench.model, skip), keep)(*bench.inputs[0])
        cut = structure.cut(bench.model, keep, skip)(*bench.inputs[0])
    assert (cut - masked).abs().max() <= 1e-9 * masked.abs().max()


def test_deleting_a_block_equals_its_last_norm_at_zero_to_the_bit() -> None:
    model, _, structure = traced("resnet18")
    zeroed = seeded(torchvision.models.resnet18)
    zeroed.load_state_dict(model.state_dict())
    for norm in (zeroed.layer2[1].bn2, zeroed.layer4[1].bn2):
        nn.init.zeros_(norm.weight)
        nn.init.zeros_(norm.bias)
    inputs = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(structure.skip_blocks(model, ["layer2.1", "layer4.1"])(inputs), zeroed(inputs))


@pytest.mark.parametrize(
    ("name", "classes", "before", "skip", "after", "macs"),
    [
        (
            "resnet56_cifar",
            10,
            853_018,
            ["layer1.7", "layer1.8", "layer2.8", *(f"layer3.{i}" for i in range(2, 9))],
            307_226,
            (125_485_056, 78_299_136),
        ),
        (
            "resnet56_cifar",
            100,
            858_868,
            ["layer1.7", "layer1.8", "layer2.8", *(f"layer3.{i}" for i in range(5, 9))],
            535_028,
            None,
        ),
    ],
)
def test_published_depths(
    name: str, classes: int, before: int, skip: list[str], after: int, macs: tuple[int, int] | None
) -> None:
    model = build_model(ModelSpec(name=name), num_classes=classes)
    structure = trace(model, image(), verify=False)
    less = structure.without_blocks(skip)
    assert (structure.params(), less.params()) == (before, after)
    if macs is not None:
        convolutions = [
            sum(c for layer, c in zip(s.layers, s.layer_flops(s.sizes), strict=True) if layer.kind == "conv")
            for s in (structure, less)
        ]
        assert [round(flops / 2) for flops in convolutions] == list(macs)
    # option A: the first unit of the first stage could go too, those that widen could not
    assert len(structure.blocks) == 25
    assert [block.name for block in structure.blocks if block.first] == ["layer1.0"]
    assert [fixed.name for fixed in structure.fixed_blocks] == ["layer2.0", "layer3.0"]


def test_published_depth_of_resnet50() -> None:
    structure = traced("resnet50")[2]
    assert structure.params() == 25_557_032
    assert structure.without_blocks(["layer3.5", "layer4.1", "layer4.2"]).params() == 15_514_664
