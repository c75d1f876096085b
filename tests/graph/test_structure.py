"""A cut model equals the masked one, costs what the plan says, and leaves everything else as it was."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from autoprune.errors import BadInput, UnknownName, WrongArtefact
from autoprune.graph import Role, Selection, Structure, apply_selection, trace
from autoprune.graph.bench import Bench
from autoprune.graph.tracer import as_inputs

from .networks import Residual, networks
from .transformers import transformer

NAMES = tuple(networks())


@cache
def traced(name: str) -> tuple[nn.Module, Any, Structure]:
    model, inputs = networks()[name]
    return model, inputs, trace(model, inputs)


def random_keep(structure: Structure, seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    keep = {}
    for name, size in zip(structure.names, structure.sizes.tolist(), strict=True):
        count = int(generator.integers(1, max(2, size)))
        keep[name] = np.sort(generator.choice(size, count, replace=False))
    return keep


def run(model: nn.Module, inputs: Any) -> list[Tensor]:
    args, kwargs = as_inputs(inputs)
    with torch.no_grad():
        return pytree.tree_leaves(model(*args, **kwargs))


def in_double(model: nn.Module, inputs: Any) -> tuple[nn.Module, Any]:
    """A copy with random constants and inputs, so that no wrong index hides behind zeros."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        bench = Bench.build(model, as_inputs(inputs))
    args, kwargs = bench.inputs
    return bench.model, kwargs or args


def counted(model: nn.Module, inputs: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        run(model, inputs)
    return int(counter.get_total_flops())


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_every_hidden_width_can_be_cut(name: str) -> None:
    _, _, structure = traced(name)
    assert structure.groups
    assert {frozen.operator for frozen in structure.frozen} <= {"output"}
    assert structure.verified == "float64"
    assert not structure.unsupported


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_cut_equals_masked(name: str, seed: int) -> None:
    model, inputs, structure = traced(name)
    model, inputs = in_double(model, inputs)
    keep = random_keep(structure, seed)
    small, masked = structure.cut(model, keep), structure.mask(model, keep)
    assert parameters(small) < parameters(model)
    before = run(model, inputs)
    for cut, full, whole in zip(run(small, inputs), run(masked, inputs), before, strict=True):
        largest = full.abs().max()
        assert (cut - full).abs().max() <= 1e-9 * largest
        assert (whole - full).abs().max() > 1e-6 * largest, "masking changed nothing: the test is vacuous"


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_cost_equals_the_counter(name: str, seed: int) -> None:
    model, inputs, structure = traced(name)
    keep = random_keep(structure, seed)
    small = structure.cut(model.eval(), keep)
    batch = 2 if name == "mlp_on_sequences" else 1
    assert structure.flops(keep) * batch == counted(small, inputs)
    assert structure.params(keep) == parameters(small)
    counts = structure.counts(keep)
    widths, flops = structure.layer_widths(counts), structure.layer_flops(counts)
    for layer, (into, out), cost in zip(structure.layers, widths, flops, strict=True):
        module = small.get_submodule(layer.name)
        linear = isinstance(module, nn.Linear)
        assert (into, out) == (
            (module.in_features, module.out_features) if linear else (module.in_channels, module.out_channels)
        )
        assert cost > 0
    assert flops.sum() <= structure.flops(keep)


@pytest.mark.parametrize("name", NAMES)
def test_sizes_of_modules_follow(name: str) -> None:
    model, _, structure = traced(name)
    small = structure.cut(model, random_keep(structure, 5))
    for module in small.modules():
        if isinstance(module, nn.Conv2d | nn.Conv1d):
            assert tuple(module.weight.shape[:2]) == (
                module.out_channels,
                module.in_channels // module.groups,
            )
        elif isinstance(module, nn.ConvTranspose2d):
            assert tuple(module.weight.shape[:2]) == (module.in_channels, module.out_channels)
        elif isinstance(module, nn.Linear):
            assert tuple(module.weight.shape) == (module.out_features, module.in_features)
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            assert module.num_features == len(module.running_mean)  # type: ignore[arg-type]
        elif isinstance(module, nn.PReLU):
            assert module.num_parameters == len(module.weight)


def test_norm_without_tensors_follows() -> None:
    model, _, structure = traced("instance_norm")
    assert structure.cut(model, {"0": [0, 3, 4]})[1].num_features == 3  # type: ignore[index]


@pytest.mark.parametrize("name", ["residual_zero_pad", "dense", "depthwise_multiplier_2", "grouped", "flatten_linear"])
def test_restricted_structure_is_that_of_the_cut_model(name: str) -> None:
    model, inputs, structure = traced(name)
    model, inputs = in_double(model, inputs)
    first = random_keep(structure, 1)
    once, inner = structure.cut(model, first), structure.restrict(first)
    assert inner.names == structure.names
    assert inner.flops() == structure.flops(first)
    assert inner.params() == structure.params(first)
    second = random_keep(inner, 2)
    both = {group: first[group][second[group]] for group in structure.names}
    one, other = inner.cut(once, second), structure.cut(model, both)
    assert one.state_dict().keys() == other.state_dict().keys()
    for key, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[key]), key
    for cut, direct in zip(run(one, inputs), run(other, inputs), strict=True):
        assert torch.equal(cut, direct)
    assert inner.flops(second) == structure.flops(both)
    assert [(layer.in_features, layer.out_features) for layer in inner.layers] == [
        tuple(row) for row in structure.layer_widths(structure.counts(first)).tolist()
    ]
    assert inner.fingerprint != structure.fingerprint


def test_zero_padding_stream_has_one_group_for_each_birth() -> None:
    """Channels of stage 1 live on in stage 2; those that the shortcut pads are born there, before and
    after."""
    model, _, structure = traced("residual_zero_pad")
    assert (structure.group("0.0").size, structure.group("2.conv2").size) == (6, 4)
    small = structure.cut(model, {"0.0": [0, 5], "2.conv2": [1, 2, 3]})
    assert (small[2].shortcut.pad_before, small[2].shortcut.pad_after) == (1, 2)  # type: ignore[index,union-attr]


def test_groups_know_their_places() -> None:
    _, _, structure = traced("depthwise_multiplier_2")
    group = structure.group("0.0")
    assert [(p.tensor, p.role) for p in group.producers] == [("0.0.weight", Role.OUTPUT)]
    assert [(p.tensor, p.axis) for p in group.consumers] == [("2.0.weight", 1)]
    assert [p.tensor for p in group.norms] == ["0.1.weight", "1.1.weight"]
    depthwise = group.places_with(Role.DEPTHWISE)[0]
    assert depthwise.indices.tolist() == [[2 * c, 2 * c + 1] for c in range(8)]
    # One unit: 3x3 over 3 inputs, two 3x3 filters, two inputs of six 1x1 outputs, all on 10x10.
    assert group.flops_per_unit == 2 * 100 * (27 + 18 + 12)


def test_layers_are_described() -> None:
    _, _, structure = traced("depthwise")
    layer = structure.layers[1]
    assert (layer.name, layer.kind, layer.weight, layer.bias) == ("1.0", "conv", "1.0.weight", None)
    assert (layer.kernel, layer.stride, layer.padding, layer.groups) == ((3, 3), (1, 1), (1, 1), 8)
    assert layer.calls[0].in_positions == layer.calls[0].out_positions == (10, 10)
    assert structure.layers[-1].bias == "3.2.bias"


def test_called_twice_counts_twice() -> None:
    _, _, structure = traced("called_twice")
    shared = next(layer for layer in structure.layers if layer.name == "shared.0")
    assert len(shared.calls) == 2


@pytest.mark.parametrize("name", ["residual_zero_pad", "grouped", "flatten_linear", "instance_norm"])
def test_json_and_pickle_round_trip(name: str) -> None:
    _model, _, structure = traced(name)
    keep = random_keep(structure, 3)
    text = structure.to_json()
    for copied in (Structure.from_json(text), pickle.loads(pickle.dumps(structure))):  # noqa: S301
        assert copied.to_json() == text
        assert copied.selection(keep) == structure.selection(keep)
        assert copied.flops(keep) == structure.flops(keep)
        assert copied.frozen == structure.frozen
        assert copied.layers == structure.layers
    with pytest.raises(BadInput, match="not a structure"):
        Structure.from_json("{}")


def test_same_model_same_plan_in_every_process() -> None:
    code = (
        "from tests.graph.networks import networks; from tests.graph.transformers import transformer;"
        "from autoprune.graph import trace; import sys;"
        "plans = [trace(*networks()['residual_zero_pad']), *(trace(*transformer(n)) for n in ('constant', 'built'))];"
        "sys.stdout.write('\\n'.join(plan.to_json() for plan in plans))"
    )
    # Another seed than this process has, so that the order of every set differs.
    seed = "4242" if os.environ.get("PYTHONHASHSEED") != "4242" else "0"
    other = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": seed},
    ).stdout
    here = [traced("residual_zero_pad")[2], *(trace(*transformer(n)) for n in ("constant", "built"))]
    assert other.splitlines() == [plan.to_json() for plan in here]


def test_fingerprint_tells_models_apart() -> None:
    def of(model: nn.Module) -> str:
        return trace(model, torch.zeros(1, 4), verify=False).fingerprint

    base = of(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)))
    assert base == of(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)))
    assert base != of(nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 2)))
    assert base != of(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)))


def test_model_and_random_state_are_untouched() -> None:
    model, inputs = networks()["residual_zero_pad"]
    model.train()
    model[1].eval()  # type: ignore[index]
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    state = torch.get_rng_state()
    structure = trace(model, inputs)
    small = structure.cut(model, 0.5)
    structure.mask(model, 0.5)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes == [m.training for m in small.modules()]
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in small.parameters()}


def test_cut_keeps_hooks_types_and_requires_grad() -> None:
    model, _, structure = traced("plain")
    model = copy.deepcopy(model).to(torch.bfloat16)
    model[0][0].weight.requires_grad_(False)  # type: ignore[index]
    model[0].register_forward_hook(_double)  # type: ignore[index]
    small = structure.cut(model, 0.5)
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in model.parameters()]
    assert len(small[0]._forward_hooks) == 1  # type: ignore[index]


def _double(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output * 2


def test_tied_tensors_stay_tied() -> None:
    model, _, structure = traced("tied_weights")
    small = structure.cut(model, 0.5)
    assert small.a.weight is small.b.weight
    assert small.a.weight.shape == (4, 4, 3, 3)


def test_cut_model_trains() -> None:
    model, _inputs, structure = traced("auxiliary_head")
    small = structure.cut(model, 0.4).train()
    both = small(torch.randn(4, 3, 10, 10))
    sum(output.sum() for output in both).backward()
    assert all(p.grad is not None for p in small.parameters())


def test_selection_cuts_without_a_structure() -> None:
    model, _inputs, structure = traced("residual_zero_pad")
    keep = random_keep(structure, 4)
    data = json.loads(json.dumps(structure.selection(keep).to_data()))
    fresh = copy.deepcopy(model)
    assert apply_selection(fresh, data) is fresh
    cut = structure.cut(model, keep)
    for (key, tensor), (other_key, other) in zip(fresh.state_dict().items(), cut.state_dict().items(), strict=True):
        assert key == other_key
        assert torch.equal(tensor, other)
    assert repr(fresh) == repr(cut)
    with pytest.raises(WrongArtefact, match="cut already"):
        apply_selection(fresh, data)
    with pytest.raises(WrongArtefact, match="no module"):
        apply_selection(nn.Linear(2, 2), data)
    with pytest.raises(WrongArtefact, match="kept"):
        Selection.from_data({"attributes": {}})


def test_tied_tensors_stay_tied_in_place() -> None:
    model, _, structure = traced("tied_weights")
    fresh = apply_selection(copy.deepcopy(model), structure.selection(0.5))
    assert fresh.a.weight is fresh.b.weight


def test_keep_fraction_rounds_down_to_the_grid() -> None:
    model = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 6), nn.ReLU(), nn.Linear(6, 2))
    structure = trace(model, torch.zeros(1, 4), round_to=8)
    assert structure.min_counts.tolist() == [8, 6]
    assert structure.counts(0.9).tolist() == [16, 6]
    assert structure.counts(0.1).tolist() == [8, 6]
    assert structure.counts(1.0).tolist() == [20, 6]
    structure.check_counts(np.array([20, 6]))
    with pytest.raises(BadInput, match=r"'0': 10 of 20 .* multiple of round_to=8, or all 20"):
        structure.check_counts(np.array([10, 6]))
    with pytest.raises(BadInput, match="multiple of round_to=8"):
        structure.cut(model, {"0": range(12)})
    low, high = structure.reachable_flops
    assert (low, high) == ((4 * 8 + 8 * 6 + 12) / (4 * 20 + 20 * 6 + 12), 1.0)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"0.0": []}, "is empty: at least 1 of 8 units"),
        ({"0.0": [0, 8]}, "has unit 8; the group has units 0..7"),
        ({"0.0": [-1]}, "has unit -1"),
        ({"0.0": [1, 1]}, "twice"),
        ({"0.0": [0.5]}, "integer unit indices"),
        ({"0.0": [[0]]}, "flat sequence"),
        (0.0, r"in \(0, 1\], got 0.0"),
        (1.5, r"in \(0, 1\], got 1.5"),
        (float("nan"), "nan"),
        ("half", "mapping of group names"),
    ],
)
def test_wrong_keep_is_refused(keep: Any, message: str) -> None:
    model, _, structure = traced("plain")
    with pytest.raises(BadInput, match=message):
        structure.cut(model, keep)


def test_unknown_group_is_refused_with_the_nearest() -> None:
    model, _, structure = traced("plain")
    with pytest.raises(UnknownName, match=r"no group named '2\.00'. Did you mean '2.0'"):
        structure.cut(model, {"2.00": [0]})
    with pytest.raises(UnknownName, match="no group named"):
        structure.group("nothing")


def test_keep_may_be_a_tensor_in_any_order() -> None:
    model, _, structure = traced("plain")
    small = structure.cut(model, {"0.0": torch.tensor([5, 2])})
    assert torch.equal(small[0][0].weight, model[0][0].weight[[2, 5]])  # type: ignore[index]


def test_other_model_is_refused() -> None:
    _, _, structure = traced("plain")
    with pytest.raises(WrongArtefact, match="another model"):
        structure.cut(Residual(3, 4, 1), 0.5)


def test_describe_gives_plain_rows() -> None:
    _, _, structure = traced("plain")
    rows = json.loads(json.dumps(structure.describe()))
    first = rows["groups"][0]
    assert (first["name"], first["units"], first["min_units"]) == ("0.0", 8, 1)
    # Seven of eight: of layer one (3 inputs, 100 pixels) and of what layer two reads (12 outputs, 25 pixels).
    assert first["flops_share"] == pytest.approx(7 * 2 * 9 * (3 * 100 + 12 * 25) / structure.flops())
    assert rows["frozen"][0]["reason"] == "output of the network"
