"""What is a block and what is none: the addition, the shortcut, what lies behind it, who else looks inside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from autoprune.graph import trace
from autoprune.graph.residuals import Reader

from .blocknets import (
    Wrapped,
    image,
    names,
    reasons,
    seeded,
)
from .networks import PreActivation, Residual, conv_bn, head


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
