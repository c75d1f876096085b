"""Blocks: which residual modules can be skipped, and that the model without them is what was promised."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import StochasticDepth

from autoprune.errors import BadInput, UnknownName, WrongArtefact
from autoprune.graph import Selection, Skipped, Structure, apply_selection, trace
from autoprune.graph.bench import Bench
from autoprune.graph.preparing import plainly
from autoprune.graph.residuals import Reader
from autoprune.graph.tracer import as_inputs
from autoprune.models import build_model
from autoprune.specs import ModelSpec

from .networks import PreActivation, Residual, conv_bn, head


def seeded(make: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


def counted(model: nn.Module, inputs: Tensor) -> int:
    with torch.no_grad(), plainly(model), FlopCounterMode(display=False) as counter:
        model(inputs)
    return int(counter.get_total_flops())


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def names(structure: Structure) -> list[str]:
    return [block.name for block in structure.blocks]


def reasons(structure: Structure) -> dict[str, str]:
    return {fixed.name: fixed.reason for fixed in structure.fixed_blocks}


def image(size: int = 32) -> Tensor:
    return torch.zeros(1, 3, size, size)


def small_swin() -> nn.Module:
    return torchvision.models.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=5)


def small_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(32, 8, 3, 4, 16, 32, num_classes=5)


def small_convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(8, 16, 2), CNBlockConfig(16, None, 2)], num_classes=5, stochastic_depth_prob=0.2)


MODELS: dict[str, tuple[Any, int, list[str]]] = {
    "resnet18": (
        torchvision.models.resnet18,
        64,
        ["layer1.0", "layer1.1", "layer2.1", "layer3.1", "layer4.1"],
    ),
    "resnet50": (
        torchvision.models.resnet50,
        64,
        [f"layer{stage}.{i}" for stage, count in ((1, 3), (2, 4), (3, 6), (4, 3)) for i in range(1, count)],
    ),
    "mobilenet_v2": (
        torchvision.models.mobilenet_v2,
        64,
        [f"features.{i}" for i in (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)],
    ),
    "vit": (small_vit, 32, [f"encoder.layers.encoder_layer_{i}" for i in range(3)]),
    "swin": (small_swin, 32, ["features.1.0", "features.1.1", "features.3.0", "features.3.1"]),
    "convnext": (small_convnext, 32, ["features.1.0", "features.1.1", "features.3.0", "features.3.1"]),
}
FIRST = {
    "resnet18": ["layer1.0"],
    "resnet50": [],
    "mobilenet_v2": [],
    "vit": ["encoder.layers.encoder_layer_0"],
    "swin": ["features.1.0", "features.3.0"],
    "convnext": ["features.1.0", "features.3.0"],
}


@cache
def traced(name: str) -> tuple[nn.Module, Tensor, Structure]:
    make, size, _ = MODELS[name]
    model = seeded(make)
    return model, image(size), trace(model, image(size))


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


def draw(structure: Structure, seed: int) -> tuple[list[str], dict[str, np.ndarray]]:
    """Random blocks to skip, and random units to keep of the groups that are left."""
    generator = np.random.default_rng(seed)
    skip = [name for name in names(structure) if generator.random() < 0.5]
    keep = {}
    less = structure.without_blocks(skip)
    for name, size in zip(less.names, less.sizes.tolist(), strict=True):
        keep[name] = np.sort(generator.choice(size, int(generator.integers(1, size + 1)), replace=False))
    return skip, keep


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


# ---- what must not be skipped


class Wrapped(nn.Module):
    """A stem that gives values of both signs, a block, a head."""

    def __init__(self, block: nn.Module, width: int = 6, positive: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.positive = positive
        self.block = block
        self.head = head(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.block(functional.relu(x) if self.positive else x))


class Around(nn.Module):
    """`rule` puts the branch and the input together."""

    def __init__(self, rule: Any, width: int = 6, out: int = 6) -> None:
        super().__init__()
        self.rule = rule
        self.branch = nn.Sequential(nn.Conv2d(width, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, out, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.rule(x, self.branch(x))


HOSTILE = {
    "scaled shortcut": (lambda x, f: 0.5 * x + f, "mul is on the shortcut"),
    "silu behind": (lambda x, f: functional.silu(x + f), "silu follows the addition"),
    "relu of negative input": (lambda x, f: functional.relu(x + f), "relu follows the addition, and the input can be"),
    "relu6 of wide input": (lambda x, f: functional.relu6(functional.relu(x) + f), "relu"),
    "norm behind": (lambda x, f: functional.layer_norm(x + f, x.shape[1:]), "layer_norm follows the addition"),
    "scaled addition": (lambda x, f: torch.add(f, x, alpha=2), "the addition scales one addend"),
    "twice its input": (lambda x, f: x + x + 0 * f, "both addends"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_changes_the_shortcut_is_no_block(case: str) -> None:
    rule, reason = HOSTILE[case]
    structure = trace(seeded(lambda: Wrapped(Around(rule))), image(8))
    assert not structure.blocks
    assert reason in reasons(structure).get("block", "")


def test_concatenation_is_no_block() -> None:
    block = Around(lambda x, f: torch.cat([x, f], 1), out=4)
    model = seeded(lambda: nn.Sequential(conv_bn(3, 6), block, head(10)))
    structure = trace(model, image(8))
    assert not structure.blocks
    assert "cat" in reasons(structure)["1"]


def test_projection_is_no_block() -> None:
    structure = trace(seeded(lambda: nn.Sequential(conv_bn(3, 6), Residual(6, 10, 2), head(10))), image(8))
    assert not structure.blocks
    assert reasons(structure) == {"1": "conv2d (1.shortcut.0) is on the shortcut"}


def test_relu_behind_is_fine_where_the_input_cannot_be_negative() -> None:
    block = Around(lambda x, f: functional.relu(x + f))
    assert names(trace(seeded(lambda: Wrapped(block, positive=True)), image(8))) == ["block"]


def test_input_changed_in_place_is_no_block() -> None:
    """The shortcut carries what the branch wrote over its input."""

    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(6, 6, 3, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(functional.relu(x, inplace=True)) + x

    structure = trace(seeded(lambda: Wrapped(InPlace())), image(8))
    assert not structure.blocks
    assert reasons(structure)["block"].startswith("relu is on the shortcut, and the input can be negative")


def test_code_that_asks_what_a_block_is_fails_the_proof() -> None:
    """Nothing in the trace tells: the model computes something else without the block."""

    class Asks(Wrapped):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(self.block(x) if isinstance(self.block, Around) else 2 * x)

    structure = trace(seeded(lambda: Asks(Around(lambda x, f: x + f))), image(8))
    assert not structure.blocks
    assert reasons(structure)["block"].startswith("skipped and zeroed outputs differ by")


def test_block_called_twice_stays() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block, self.head = conv_bn(3, 6), PreActivation(6), head(6)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.block(self.block(self.stem(x))))

    structure = trace(seeded(Twice), image(8))
    assert not structure.blocks
    assert reasons(structure) == {"block": "called 2 times in one forward pass"}


def test_shared_and_outside_tensors_keep_a_block() -> None:
    class Shares(nn.Module):
        def __init__(self, outside: bool) -> None:
            super().__init__()
            self.outside = outside
            self.stem, self.block, self.last = conv_bn(3, 6), PreActivation(6), nn.Conv2d(12, 6, 3, 1, 1, bias=False)
            self.middle, self.head = nn.Conv2d(6, 12, 1), head(6)
            if not outside:
                self.last.weight = self.block.conv2.weight

        def forward(self, x: Tensor) -> Tensor:
            x = self.middle(self.block(self.stem(x)))
            weight = self.block.conv2.weight if self.outside else self.last.weight
            return self.head(functional.conv2d(x, weight, padding=1))

    shared = trace(seeded(lambda: Shares(False)), image(8))
    assert not shared.blocks
    assert "block.conv2.weight" in reasons(shared)["block"]
    read = trace(seeded(lambda: Shares(True)), image(8))
    assert reasons(read) == {"block": "block.conv2.weight is read outside of it"}


def test_result_beside_the_stream_keeps_a_block() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(6, 6, 3, 1, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.conv(x)
            return x + y, y

    class Model(nn.Module):
        def __init__(self, both: bool) -> None:
            super().__init__()
            self.stem, self.block, self.head, self.both = conv_bn(3, 6), Pair(), head(6), both

        def forward(self, x: Tensor) -> Tensor:
            x, y = self.block(self.stem(x))
            return self.head(x * y.sigmoid() if self.both else x)

    assert not trace(seeded(lambda: Model(True)), image(8)).blocks
    one = trace(seeded(lambda: Model(False)), image(8))
    assert not one.blocks
    assert reasons(one) == {"block": "it returns more than one tensor"}


def test_code_that_looks_into_a_block_keeps_it() -> None:
    """nn.TransformerEncoder reads attributes of its first layer."""
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, norm_first=True)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.encoder, self.head = (
                nn.Linear(5, 16),
                nn.TransformerEncoder(layer, 3, enable_nested_tensor=False),
                nn.Linear(16, 3),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.encoder(self.embed(x)).mean(1))

    structure = trace(seeded(Model), torch.zeros(1, 7, 5))
    assert names(structure) == ["encoder.layers.1", "encoder.layers.2"]
    assert "AttributeError" in reasons(structure)["encoder.layers.0"]


def test_excluded_modules_are_never_skipped() -> None:
    model = seeded(torchvision.models.resnet18)
    structure = trace(model, image(64), exclude=["layer1.*.conv1", "layer3"], verify=False)
    assert names(structure) == ["layer2.1", "layer4.1"]
    assert reasons(structure)["layer1.0"] == "excluded by 'layer1.*.conv1'"


# ---- what can


def test_very_deep_networks_are_read_without_recursion() -> None:
    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.inner(x)) + x

    model = seeded(lambda: nn.Sequential(nn.Sequential(*(Adds() for _ in range(360))), nn.Linear(2, 2)))
    found = Reader(torch.export.export(model, (torch.zeros(1, 2),), strict=False)).residuals()
    assert len([item for item in found if not item.problem and item.path != "0"]) == 360


def test_input_used_in_several_places_inside() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(6, 6, 3, 1, 1), nn.Conv2d(6, 6, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) * torch.sigmoid(self.b(x)) + x

    assert names(trace(seeded(lambda: Wrapped(Gated())), image(8))) == ["block"]


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


# ---- random networks

STEPS = st.lists(
    st.tuples(st.sampled_from(["post", "pre", "scaled", "widen", "plain", "gate"]), st.integers(2, 5)),
    min_size=1,
    max_size=6,
)


class Unit(nn.Module):
    def __init__(self, kind: str, width: int, inner: int) -> None:
        super().__init__()
        self.kind, self.width = kind, width + inner if kind == "widen" else width
        self.branch = nn.Sequential(
            nn.Conv2d(width, inner, 3, 1, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, self.width, 3, 1, 1),
        )
        self.side = nn.Conv2d(width, self.width, 1)
        self.gamma = nn.Parameter(torch.randn(self.width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        if self.kind == "post":
            return functional.relu(x + y)
        if self.kind == "pre":
            return y + x
        if self.kind == "scaled":
            return x + self.gamma * functional.dropout(y, 0.3, self.training)
        if self.kind == "gate":
            return x + y * torch.sigmoid(self.side(x))
        return functional.relu(y + self.side(x))


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(steps=STEPS, seed=st.integers(0, 1000))
def test_random_blocks_and_channels(steps: list[tuple[str, int]], seed: int) -> None:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        units: list[Unit] = []
        for kind, inner in steps:
            units.append(Unit(kind, units[-1].width if units else 4, inner))
        model: nn.Module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), *units, head(units[-1].width)).eval()
        structure = trace(model, image(5))
        bench = Bench.build(model, as_inputs(image(5)))
        never_negative, expected = True, []
        for i, (kind, _) in enumerate(steps):
            if kind in ("pre", "scaled", "gate") or (kind == "post" and never_negative):
                expected.append(str(i + 2))
            never_negative = kind in ("post", "widen", "plain")
        assert names(structure) == expected
        skip, keep = draw(structure, seed)
        less, small = structure.without_blocks(skip), structure.cut(bench.model, keep, skip)
        cut = small(*bench.inputs[0])
        # the full model whose skipped branches give zeros, and whose removed units are zero
        full = structure.mask(bench.model, keep)
        for name in skip:
            full.get_submodule(name).branch.register_forward_hook(lambda *call: torch.zeros_like(call[2]))
        zeroed = full(*bench.inputs[0])
    assert (cut - zeroed).abs().max() <= 1e-9 * zeroed.abs().max()
    assert counted(small, bench.inputs[0][0]) == less.flops(keep)
    assert parameters(small) == less.params(keep)
