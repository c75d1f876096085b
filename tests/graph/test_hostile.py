"""Hostile models: exact, frozen with a reason, or refused with module, line and cause. Never broken, never noisy."""

from __future__ import annotations

import copy
import dataclasses
import logging
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from autoprune.errors import TraceFailed
from autoprune.graph import Structure, trace
from autoprune.graph.failures import quiet_export
from autoprune.graph.tracer import as_inputs, twice

from .hostile import Model, cases
from .networks import conv_bn, head, image
from .test_structure import random_keep

NAMES = tuple(cases())


@cache
def traced(name: str) -> tuple[nn.Module, Any, Structure]:
    model, inputs, _ = cases()[name]
    return model, inputs, trace(model, inputs)


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    torch.manual_seed(1)
    args, kwargs = as_inputs(pytree.tree_map(lambda x: torch.randn_like(x) if isinstance(x, Tensor) else x, inputs))
    found = model(*args, **kwargs)
    found = vars(found) if dataclasses.is_dataclass(found) else found
    return [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("name", NAMES)
def test_groups_are_as_expected_and_the_rest_is_explained(name: str) -> None:
    _, _, structure = traced(name)
    assert dict(zip(structure.names, structure.group_sizes, strict=True)) == cases()[name][2]
    assert structure.verified == "float64"
    assert all(item.reason and item.operator for item in structure.frozen)


@pytest.mark.parametrize("name", NAMES)
def test_cut_equals_masked_and_keeps_mode_and_names(name: str) -> None:
    model, inputs, structure = traced(name)
    keep = random_keep(structure, 0)
    small, masked = structure.cut(model, keep), structure.mask(model, keep)
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    assert list(small.state_dict()) == list(model.state_dict())
    structure.cut(model, keep).load_state_dict(small.state_dict())
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for cut, full in zip(outputs(small.eval(), inputs), outputs(masked.eval(), inputs), strict=True):
            torch.testing.assert_close(cut, full)


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name not in ("in_place", "into_a_buffer", "through_a_view")]
)
def test_every_parameter_that_had_a_gradient_has_one(name: str) -> None:
    model, inputs, structure = traced(name)
    small = structure.cut(model, random_keep(structure, 1))
    assert with_gradient(small, inputs) == with_gradient(model, inputs)


def with_gradient(model: nn.Module, inputs: Any) -> set[str]:
    model = copy.deepcopy(model).train()
    args, kwargs = twice(as_inputs(inputs))
    with torch.random.fork_rng(devices=[]):
        found = outputs(model, kwargs or args)
    total = sum(leaf.abs().sum() for leaf in found if leaf.requires_grad)
    if isinstance(total, Tensor):
        total.backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize(
    ("name", "frozen", "operator"),
    [
        ("weight_norm", "0", "aten.conv2d.default"),
        ("spectral_norm", "0", "aten.conv2d.default"),
        ("standardised_weight", "aten.conv2d.default", "aten.conv2d.default"),
        ("recurrent", "a", "aten.gru.input"),
        ("fourier", "a.0", "aten.fft_rfft2.default"),
        ("chance_in_training", "a.0", "verification"),
        ("through_a_view", "a", "verification"),
    ],
)
def test_what_is_frozen_is_named(name: str, frozen: str, operator: str) -> None:
    _, _, structure = traced(name)
    assert operator in {item.operator for item in structure.frozen if item.name == frozen}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_traced_proven_in_double_and_kept(dtype: torch.dtype) -> None:
    model = nn.Sequential(conv_bn(3, 8), conv_bn(8, 6), head(6)).to(dtype)
    model[0].requires_grad_(False)
    structure = trace(model, image().to(dtype))
    assert (structure.verified, structure.names) == ("float64", ("0.0", "1.0"))
    small = structure.cut(model, 0.5).eval()
    assert {p.dtype for p in (*small.parameters(), small(image().to(dtype)))} == {dtype}
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in model.parameters()]


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return self.inner(x)
        return x


class Counting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(int(x.sum().item()) % 3):
            x = x + 1
        return x


class Picking(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x.sum(1) > 0]


def lazy() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.LazyConv2d(8, 3), head(8))


class Growing(nn.Module):
    """Makes a layer when it first sees an input."""

    def forward(self, x: Tensor) -> Tensor:
        if "late" not in self._modules:
            self.late = nn.Linear(x.shape[-1], 3)
        return self.late(x)


def quantised() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 8)), {nn.Linear})


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.Linear(4, 4), torch.jit.script(nn.Linear(4, 4)))


def pruned() -> nn.Module:
    from torch.nn.utils import prune

    layer = nn.Linear(4, 4)
    prune.random_unstructured(layer, "weight", 0.5)
    return nn.Sequential(layer)


REFUSED: list[tuple[Callable[[], nn.Module], str]] = [
    (lambda: nn.Sequential(nn.Linear(4, 4), Branching()), r"in module '1' \(test_hostile.py:\d+: if x.sum\(\) > 0:\)"),
    (lambda: nn.Sequential(nn.Linear(4, 4), Counting()), r"test_hostile.py:\d+: for _ in range\(int\("),
    (lambda: nn.Sequential(nn.Linear(4, 4), Picking()), r"in module '1'.*size depends on the data"),
    (lambda: Model(lambda m, x: torch.from_numpy(x.detach().numpy())), r"hostile.py:\d+.*numpy"),
    (lambda: Model(lambda m, x: object()), "returns tensors, tuples, dicts or data classes"),
    (lambda: nn.Linear(4, 4, device="meta"), "on the meta device.*Load real weights"),
    (lazy, "'0.weight' has no shape yet.*Run the model once"),
    (
        lambda: nn.Sequential(nn.Linear(4, 6), Growing()),
        "'1.late.weight' is made in the forward.*Run the model once",
    ),
    (quantised, "module '0' is quantised.*Prune the float model"),
    (scripted, "module '1' is TorchScript.*Give the Python model"),
    (pruned, "module '0' keeps the result of a computation, 'weight'.*prune.remove"),
    (lambda: nn.DataParallel(nn.Linear(4, 4)), "the model is a DataParallel.*model.module"),
]


@pytest.mark.parametrize(("build", "message"), REFUSED)
def test_refused_with_the_cause_and_without_noise(
    build: Callable[[], nn.Module], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    model = build()
    capfd.readouterr()
    with pytest.raises(TraceFailed, match=message):
        trace(model, torch.ones(2, 4))
    assert capfd.readouterr() == ("", "")


def test_layers_made_in_the_forward_pass_are_cut_once_they_are_there() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), Growing(), nn.ReLU(), nn.Linear(3, 2)).eval()
    model(torch.ones(2, 4))
    structure = trace(model, torch.ones(2, 4))
    assert dict(zip(structure.names, structure.group_sizes, strict=True)) == {"0": 6, "2.late": 3}
    assert structure.cut(model, 0.5)(torch.ones(2, 4)).shape == (2, 2)


def test_only_warnings_of_torch_itself_are_dropped() -> None:
    torchs, users = logging.getLogger("torch.fx.experimental.symbolic_shapes"), logging.getLogger("mine")
    filters, level, passed = list(torchs.filters), torchs.level, Kept()
    torchs.setLevel(logging.DEBUG)
    torchs.addHandler(passed)
    users.addHandler(passed)
    try:
        with quiet_export():
            torchs.warning("dropped")
            torchs.debug("asked for")
            users.warning("mine")
        torchs.warning("after")
    finally:
        torchs.setLevel(level)
        torchs.removeHandler(passed)
        users.removeHandler(passed)
    assert passed.messages == ["asked for", "mine", "after"]
    assert torchs.filters == filters


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
