"""What every low-rank method owes, found by walking the room, for each of its choices."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from autoprune import rooms
from autoprune.errors import NotApplicable, TrialFailed
from autoprune.fields import Choice, hyperparameters
from autoprune.graph import trace
from autoprune.lowrank import LowRank
from autoprune.modules import replace_module


def methods() -> list[LowRank]:
    """Every method of the room with every combination of its choices, but for switches of a training."""
    made = []
    for name in rooms.names("lowrank"):
        declared = hyperparameters(rooms.method_class("lowrank", name))
        choices = {k: d.options for k, d in declared.items() if isinstance(d, Choice) and d.default is not True}
        for values in itertools.product(*choices.values()):
            made.append(rooms.build("lowrank", {"name": name} | dict(zip(choices, values, strict=True))))
    return cast("list[LowRank]", made)


def conv(*arguments: Any, **keywords: Any) -> nn.Module:
    return nn.Conv2d(*arguments, **keywords)


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(5, 7), (2, 5)),
    "linear on a sequence": (nn.Linear(9, 4, bias=False), (2, 3, 9)),
    "pointwise": (conv(6, 4, 1), (2, 6, 5, 7)),
    "pointwise with stride": (conv(3, 8, 1, stride=2, bias=False), (2, 3, 5, 6)),
    "3x3": (conv(4, 6, 3, padding=1), (2, 4, 5, 6)),
    "3x3 without padding": (conv(4, 3, 3, bias=False), (2, 4, 5, 6)),
    "stride": (conv(3, 5, 3, stride=2, padding=1), (2, 3, 7, 8)),
    "dilation": (conv(3, 5, 3, padding=2, dilation=2), (2, 3, 7, 8)),
    "all unequal": (conv(3, 4, (3, 5), stride=(3, 2), padding=(2, 1), dilation=(1, 2)), (2, 3, 11, 13)),
    "even kernel": (conv(3, 4, (2, 4), stride=(1, 2)), (2, 3, 6, 9)),
    "row": (conv(5, 4, (1, 3), padding=(0, 1)), (2, 5, 4, 6)),
    "column": (conv(5, 4, (3, 1), stride=(2, 2)), (2, 5, 7, 6)),
    "same": (conv(3, 4, (3, 5), padding="same", dilation=(2, 1)), (2, 3, 6, 7)),
    "valid": (conv(3, 4, 3, padding="valid"), (2, 3, 6, 7)),
    "reflect": (conv(3, 4, 3, padding=(1, 2), padding_mode="reflect"), (2, 3, 6, 7)),
    "circular": (conv(3, 4, 3, padding=(2, 1), padding_mode="circular", stride=2), (2, 3, 6, 7)),
    "replicate": (conv(3, 4, 3, padding=1, padding_mode="replicate"), (2, 3, 6, 7)),
    "conv1d": (nn.Conv1d(4, 5, 3, stride=2, padding=1), (2, 4, 9)),
    "conv3d": (nn.Conv3d(2, 4, (2, 3, 1), padding=(0, 1, 0)), (2, 2, 4, 5, 3)),
}

every_method = pytest.mark.parametrize("method", methods(), ids=lambda m: "-".join(map(str, m.config().values())))
every_layer = pytest.mark.parametrize("kind", LAYERS)


def example(kind: str) -> tuple[nn.Module, torch.Tensor]:
    """Return a float64 layer of this kind and inputs for it, always the same."""
    module, shape = LAYERS[kind]
    module = copy.deepcopy(module).double()
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws, dtype=torch.float64))
    return module, torch.randn(shape, generator=draws, dtype=torch.float64)


def measured(module: nn.Module, inputs: torch.Tensor) -> tuple[int, int]:
    """Return FLOPs for one sample as torch counts them, and parameters."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(inputs[:1])
    return counter.get_total_flops(), sum(p.numel() for p in module.parameters())


@every_method
@every_layer
def test_full_rank_reproduces_the_layer(method: LowRank, kind: str, layer_of: Any) -> None:
    module, inputs = example(kind)
    layer = layer_of(module, inputs)
    pair = method.factor(module, method.full_rank(layer, layer.in_features, layer.out_features))
    torch.testing.assert_close(pair(inputs), module(inputs), rtol=1e-10, atol=1e-10)


@every_method
@every_layer
def test_flops_and_params_are_those_of_the_real_module(method: LowRank, kind: str, layer_of: Any) -> None:
    module, inputs = example(kind)
    layer = layer_of(module, inputs)
    widths = layer.in_features, layer.out_features
    for rank in range(1, method.full_rank(layer, *widths) + 1):
        told = method.flops(layer, *widths, rank), method.params(layer, *widths, rank)
        assert told == measured(method.factor(module, rank), inputs)


@every_method
@every_layer
def test_cost_follows_the_widths_after_a_cut(method: LowRank, kind: str, layer_of: Any) -> None:
    module, inputs = example(kind)
    layer = layer_of(module, inputs)
    widths = layer.in_features, layer.out_features
    wider = replace(layer, in_features=40, out_features=50)
    assert method.full_rank(wider, *widths) == method.full_rank(layer, *widths)
    assert method.flops(wider, *widths, 2) == method.flops(layer, *widths, 2)
    assert method.params(wider, *widths, 2) == method.params(layer, *widths, 2)


@every_method
@every_layer
def test_flops_add_up_over_calls(method: LowRank, kind: str, layer_of: Any) -> None:
    layer = layer_of(*example(kind))
    twice = replace(layer, calls=layer.calls * 2)
    widths = layer.in_features, layer.out_features
    assert method.flops(twice, *widths, 2) == 2 * method.flops(layer, *widths, 2)


@every_method
@every_layer
def test_a_skeleton_takes_the_weights_of_a_factorised_layer(method: LowRank, kind: str) -> None:
    module, inputs = example(kind)
    factorised, skeleton = method.factor(module, 2), method.skeleton(module, 2)
    skeleton.load_state_dict(factorised.state_dict(), strict=True)
    assert torch.equal(skeleton(inputs), factorised(inputs))


@every_method
@every_layer
def test_the_same_weights_give_the_same_factors_and_stay_untouched(method: LowRank, kind: str) -> None:
    module, _ = example(kind)
    before, random_state = copy.deepcopy(module.state_dict()), torch.random.get_rng_state()
    first, second = method.factor(module, 2).state_dict(), method.factor(module, 2).state_dict()
    assert all(torch.equal(v, second[k]) for k, v in first.items())
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert not {v.data_ptr() for v in first.values()} & {v.data_ptr() for v in module.state_dict().values()}


@every_method
@pytest.mark.parametrize("kind", ["linear", "3x3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtype_device_and_mode_are_kept(method: LowRank, kind: str, dtype: torch.dtype) -> None:
    module = example(kind)[0].to(dtype).eval()
    for thin in (method.factor(module, 2), method.skeleton(module, 2)):
        assert {p.dtype for p in thin.parameters()} == {dtype}
        assert {p.device for p in thin.parameters()} == {torch.device("cpu")}
        assert not any(m.training for m in thin.modules())
    assert all(m.training for m in method.skeleton(module.train(), 2).modules())
    assert method.skeleton(module.to("meta"), 2).state_dict()["0.weight"].device.type == "meta"


@every_method
@pytest.mark.parametrize("kind", ["linear", "3x3"])
def test_what_was_frozen_stays_frozen(method: LowRank, kind: str) -> None:
    module, _ = example(kind)
    cast(torch.Tensor, module.weight).requires_grad_(False)
    trained = {k: p.requires_grad for k, p in method.factor(module, 2).named_parameters()}
    assert {k for k, needed in trained.items() if needed} == {k for k in trained if k.endswith("bias")}
    cast(torch.Tensor, module.bias).requires_grad_(False)
    assert not any(p.requires_grad for p in method.factor(module, 2).parameters())


class _OwnConv(nn.Conv2d):
    """May compute anything from its weight."""


@every_method
@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.ConvTranspose2d(4, 4, 3),
        _OwnConv(4, 4, 3),
        nn.BatchNorm2d(4),
    ],
    ids=lambda m: type(m).__name__,
)
def test_what_cannot_be_split_is_refused(method: LowRank, module: nn.Module) -> None:
    with pytest.raises(NotApplicable, match=r"split"):
        method.factor(module, 1)
    with pytest.raises(NotApplicable, match=r"split"):
        method.skeleton(module, 1)


@every_method
def test_rank_zero_is_refused(method: LowRank) -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        method.factor(nn.Linear(3, 3), 0)


@every_method
def test_more_than_full_rank_is_refused(method: LowRank) -> None:
    with pytest.raises(ValueError, match="at most rank 3, got 4"):
        method.factor(nn.Linear(3, 5), 4)


@every_method
def test_weights_that_are_not_finite_fail_the_trial(method: LowRank) -> None:
    module = nn.Linear(3, 3)
    nn.init.constant_(module.weight, float("nan"))
    with pytest.raises(TrialFailed, match="NaN or infinite"):
        method.factor(module, 1)


@every_method
def test_only_layers_that_are_one_matrix_are_eligible(method: LowRank, layer_of: Any) -> None:
    inputs = torch.zeros(1, 4, 5, 5)
    modules = {
        "dense": nn.Conv2d(4, 6, 3),
        "grouped": nn.Conv2d(4, 6, 3, groups=2),
        "depthwise": nn.Conv2d(4, 4, 3, groups=4),
        "single output": nn.Conv2d(4, 1, 3),
    }
    layers = [replace(layer_of(m, inputs), name=k, weight=f"{k}.weight") for k, m in modules.items()]
    layers.append(replace(layer_of(nn.Linear(1, 8), torch.zeros(1, 1)), name="one", weight="one.weight"))
    layers.append(replace(layers[0], name="up", weight="up.weight", kind="conv_transpose"))
    layers.append(replace(layers[-2], name="attention", weight="attention.in_proj_weight", in_features=8))
    fractions = method.rank_fractions(layers)
    assert list(fractions) == ["dense"]
    assert 0 < fractions["dense"] <= 1


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.twice = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.twice(self.twice(self.stem(x)).relu()).relu()
        out: torch.Tensor = self.head(self.depthwise(x).mean(dim=(2, 3)))
        return out


@every_method
def test_a_traced_model_costs_what_structure_and_method_say(method: LowRank) -> None:
    model, inputs = _Network().eval(), torch.zeros(1, 3, 9, 11)
    structure = trace(model, inputs)
    flops, params = structure.flops(), structure.params()
    for layer in structure.layers:
        if layer.name in method.rank_fractions(structure.layers):
            widths, module = (layer.in_features, layer.out_features), model.get_submodule(layer.name)
            dense_flops = measured_layer(module, layer.calls)
            flops += int(method.flops(layer, *widths, 2)) - dense_flops
            params += method.params(layer, *widths, 2) - sum(p.numel() for p in module.parameters())
            replace_module(model, layer.name, method.factor(module, 2))
    assert "twice.0.weight" in model.state_dict()
    assert (flops, params) == measured(model, inputs)


def measured_layer(module: nn.Module, calls: Any) -> int:
    weight = cast(torch.Tensor, module.weight)
    return sum(2 * weight.numel() * int(torch.tensor(call.out_positions).prod()) for call in calls)


@every_method
def test_a_factorised_layer_can_itself_be_cut(method: LowRank) -> None:
    model, inputs = _Network().eval(), torch.zeros(1, 3, 9, 11)
    replace_module(model, "stem", method.factor(model.stem, 5))
    rank = model.stem[0].out_channels  # type: ignore[index]
    structure = trace(model, inputs)
    inner = [g for g in structure.groups if any(p.tensor == "stem.0.weight" for p in g.producers)]
    assert [g.size for g in inner] == [rank]  # the rank is a width like any other
    keep = {g.name: list(range(0, g.size, 2)) for g in structure.groups}
    small, masked = (f(model.double(), keep) for f in (structure.cut, structure.mask))
    draws = torch.randn(2, 3, 9, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(small(draws), masked(draws), rtol=1e-10, atol=1e-12)
    assert small.stem[0].out_channels == -(-rank // 2)
    assert structure.flops(keep) == measured(small.float(), inputs)[0]
