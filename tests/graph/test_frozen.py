"""What cannot be cut is frozen, named and explained; what cannot be traced is refused clearly."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoprune.errors import BadInput, TraceFailed
from autoprune.graph import FrozenGroup, Structure, trace

from .networks import Auxiliary, FixedPad, conv_bn, head, image, networks, residual


def frozen(structure: Structure, name: str) -> FrozenGroup:
    assert name not in structure.names
    return next(item for item in structure.frozen if item.name == name)


def test_network_output() -> None:
    structure = trace(*networks()["plain"])
    item = frozen(structure, "3.2")
    assert (item.size, item.operator, item.reason) == (5, "output", "output of the network")


class Unsupported(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = conv_bn(3, 8), conv_bn(8, 6), head(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(torch.sort(self.first(x), dim=1)[0]))


def test_unknown_operator_locks_and_is_named() -> None:
    structure = trace(Unsupported(), image())
    assert structure.unsupported == ("aten.sort.default",)
    item = frozen(structure, "first.0")
    assert (item.operator, item.module, item.size) == ("aten.sort.default", "", 8)
    assert "no rule" in item.reason
    assert structure.names == ("second.0",)


def test_fixed_padding_freezes_only_the_channels_it_makes() -> None:
    model = residual(lambda: FixedPad(6, 10))
    structure = trace(model, image())
    assert "0.0" in structure.names
    item = frozen(structure, "2.conv2")
    assert (item.size, item.operator, item.module) == (4, "aten.pad.default", "2.shortcut")
    assert "pads these channels by a fixed number" in item.reason
    small = structure.cut(model, {"0.0": [0, 3]})
    assert small(image()).shape == (1, 5)


class FixedView(nn.Module):
    """Sizes in Python code that nothing can see in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.out = conv_bn(3, 6, stride=2), conv_bn(6, 4), nn.Linear(4 * 25, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(self.stem(x)).view(-1, 4 * 25))


def test_fixed_view_freezes_what_it_reads() -> None:
    structure = trace(FixedView(), image())
    item = frozen(structure, "body.0")
    assert item.operator == "verification"
    assert "shape '[-1, 100]' is invalid" in item.reason
    assert structure.names == ("stem.0",)


class FixedSplit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv_bn(3, 8), conv_bn(4, 6), head(6)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.stem(x).split([4, 4], dim=1)
        return self.head(self.body(first) + self.body(second))


def test_fixed_split_is_frozen_with_its_hint() -> None:
    structure = trace(FixedSplit(), image())
    item = frozen(structure, "stem.0")
    assert "splits these channels at fixed numbers" in item.reason
    assert structure.names == ("body.0",)


class Softmaxed(nn.Module):
    """One is not zero: a gate that reads a removed unit would see a half."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.sigmoid(self.second(self.first(x).softmax(-1))))


def test_what_is_not_zero_for_a_removed_unit_is_frozen() -> None:
    structure = trace(Softmaxed(), torch.zeros(1, 4))
    assert frozen(structure, "first").reason == "combines all channels"
    assert "cut and masked outputs differ by" in frozen(structure, "second").reason
    assert not structure.names


@pytest.mark.parametrize("norm", [nn.GroupNorm(1, 8), nn.LayerNorm([8, 10, 10])])
def test_norms_across_channels_are_frozen(norm: nn.Module) -> None:
    structure = trace(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), norm, nn.Conv2d(8, 6, 3), head(6)), image())
    assert "statistics are taken over" in frozen(structure, "0").reason
    assert structure.names == ("2",)


def test_unread_parameters_are_frozen() -> None:
    model = nn.Sequential(conv_bn(3, 6), head(6))
    model.spare = nn.Linear(6, 6)
    structure = trace(_first_two(model), image())
    assert frozen(structure, "spare.weight").reason == "never read by the forward pass"


def _first_two(model: nn.Sequential) -> nn.Module:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head, self.spare = model[0], model[1], model.spare

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x))

    return Outer()


class UntraceableTraining(Auxiliary):
    """The training branch depends on the data, so only running it shows that its head reads the channels."""

    def forward(self, x: Tensor) -> Any:
        x = self.body(x)
        if self.training and x.sum().item() > -1e9:
            return self.head(x), self.aux(x)
        return self.head(x)


def test_training_branch_that_cannot_be_traced_freezes_what_it_reads() -> None:
    model = UntraceableTraining()
    structure = trace(model, image())
    assert structure.names == ("body.0.0",)
    assert frozen(structure, "body.1.0").module == "aux.2"
    structure.cut(model, 0.5).train()(torch.randn(2, 3, 10, 10))


class Squeezed(nn.Module):
    """`squeeze` without an axis takes a single channel away too."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.out = conv_bn(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x).mean((2, 3), keepdim=True).squeeze())


def test_code_that_breaks_on_one_channel_is_frozen() -> None:
    structure = trace(Squeezed(), torch.zeros(2, 3, 6, 6))
    assert not structure.names
    assert frozen(structure, "body.0").operator == "verification"


def test_excluded_modules_are_left_whole() -> None:
    model, inputs = networks()["residual_projection"]
    structure = trace(model, inputs, exclude=("2.*", "5.2"))
    assert frozen(structure, "2.conv1").reason == "excluded by '2.*'"
    assert frozen(structure, "0.0").reason == "excluded by '2.*'"
    assert structure.names == ("1.conv1", "3.conv1", "4.conv1")
    small = structure.cut(model, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(small[2].parameters(), model[2].parameters(), strict=True))  # type: ignore[index]
    assert trace(model, inputs, exclude=("2", "5.2")).names == structure.names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exclude": ("nothing*",)}, "matches no module path"),
        ({"exclude": "0"}, r"sequence of globs, got '0'"),
        ({"round_to": 0}, "at least 1, got 0"),
        ({"round_to": 1.5}, "whole number"),
        ({"round_to": True}, "whole number"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        trace(*networks()["plain"], **options)


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.sum() > 0 else x


def test_data_dependent_branch_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), DataDependent())
    with pytest.raises(TraceFailed, match=r"cannot be traced in module '1'.*Take the branch out"):
        trace(model, torch.zeros(1, 4))


def test_wrong_example_is_refused_with_the_module() -> None:
    with pytest.raises(TraceFailed, match=r"does not run on the example input in module '0.0'"):
        trace(networks()["plain"][0], torch.zeros(1, 4, 10, 10))


def test_lazy_module_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.LazyLinear(4))
    with pytest.raises(TraceFailed, match="Run the model once"):
        trace(model, torch.zeros(1, 4))


def test_meta_model_is_refused() -> None:
    with pytest.raises(TraceFailed, match="meta device"):
        trace(nn.Linear(4, 4, device="meta"), torch.zeros(1, 4))


class Constant(nn.Module):
    """A fixed tensor of the full width."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv_bn(3, 8), head(8)
        self.fixed = torch.arange(8.0).view(1, 8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x) + self.fixed)


def test_fixed_tensor_freezes_its_channels() -> None:
    structure = trace(Constant(), image())
    assert "cannot be cut" in frozen(structure, "stem.0").reason


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.hidden, self.out = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(functional.relu(self.hidden(self.rnn(x)[0][:, -1])))


def test_recurrent_layer_is_left_whole_and_named() -> None:
    structure = trace(Recurrent(), torch.zeros(1, 5, 4))
    assert structure.names == ("hidden",)
    assert any("lstm" in name for name in structure.unsupported)


class FixedType(nn.Module):
    """Mixes in a float32 tensor of its own: float64 cannot run."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv_bn(3, 8), head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x.float()))


def test_model_of_fixed_precision_is_proven_in_it() -> None:
    structure = trace(FixedType(), image())
    assert structure.verified == "float32"
    assert structure.names == ("stem.0",)


def test_half_precision_model_is_traced() -> None:
    model, inputs = networks()["plain"]
    structure = trace(model.bfloat16(), inputs.bfloat16())
    assert structure.verified == "float64"
    assert {p.dtype for p in structure.cut(model, 0.5).parameters()} == {torch.bfloat16}


def test_without_verification_nothing_is_claimed() -> None:
    assert trace(*networks()["plain"], verify=False).verified == "no"


class Standardised(nn.Conv2d):
    """Weight standardisation: what one filter reads decides on all of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = functional.batch_norm(rows, None, None, training=True).reshape_as(self.weight)
        return functional.conv2d(x, weight, self.bias, padding=self.padding)


def test_standardised_convolutions_are_named() -> None:
    model = nn.Sequential(Standardised(3, 8, 3, padding=1), nn.ReLU(), Standardised(8, 6, 3, padding=1), head(6))
    structure = trace(model, image())
    assert not structure.names
    for name, size in (("0", 8), ("2", 6)):
        item = frozen(structure, name)
        assert (item.size, item.operator, item.module) == (size, "aten.conv2d.default", name)
        assert item.reason == "the weight is computed in the forward pass"


def test_heads_that_stay_whole_are_named() -> None:
    class Mixed(nn.Module):
        """A softmax over the heads needs all of them; the dimensions inside can go."""

        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.out = nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(25, 3)

        def forward(self, x: Tensor) -> Tensor:
            q, k = (layer(x).reshape(len(x), 5, 3, -1).transpose(1, 2) for layer in (self.q, self.k))
            return self.out((q @ k.transpose(-2, -1)).softmax(1).sum(1).flatten(1))

    structure = trace(Mixed(), torch.zeros(2, 5, 6))
    assert dict(zip(structure.names, structure.group_sizes, strict=True)) == {"q#head_dim": 4}
    item = frozen(structure, "q#head")
    assert (item.size, item.operator, item.reason) == (3, "aten.softmax.int", "combines all channels")


def test_sigmoid_says_why_it_freezes() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 3))
    item = frozen(trace(model, torch.zeros(1, 4)), "0")
    assert (item.operator, item.module) == ("aten.sigmoid.default", "1")
    assert "makes something else of a zero" in item.reason
    assert "cut and masked outputs differ by" in item.reason


def test_recurrent_layer_is_in_the_report() -> None:
    item = frozen(trace(Recurrent(), torch.zeros(1, 5, 4)), "rnn")
    assert (item.operator, item.module) == ("aten.lstm.input", "rnn")
    assert item.reason == "a recurrent layer stays whole"
