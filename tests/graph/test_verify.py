"""Verification finds a wrong index anywhere in a plan: it is not vacuous."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch

from autoprune.graph import Structure, trace
from autoprune.graph.bench import Bench
from autoprune.graph.tracer import as_inputs
from autoprune.graph.verify import _to_one, _Trial, _up_to_half, relative_error, verified, without

from .networks import networks


@cache
def traced(name: str) -> Structure:
    return trace(*networks()[name], verify=False)


PLANS = [
    (name, index)
    for name in (
        "residual_zero_pad",
        "dense",
        "depthwise_multiplier_2",
        "squeeze_excite",
        "prelu",
        "layer_scale",
    )
    for index in range(len(traced(name).axes))
]


@cache
def bench(name: str) -> Bench:
    model, inputs = networks()[name]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        return Bench.build(model, as_inputs(inputs))


@pytest.mark.parametrize(("name", "index"), PLANS)
def test_shifted_axis_is_found(name: str, index: int) -> None:
    structure = traced(name)
    wrong = list(structure.axes)
    wrong[index] = dataclasses.replace(wrong[index], units=np.roll(wrong[index].units, 1))
    broken = dataclasses.replace(structure, axes=tuple(wrong))
    with torch.no_grad():
        problems = [_Trial(broken, bench(name), draw).problem(structure.names) for draw in (_up_to_half, _to_one)]
        assert [_Trial(structure, bench(name), draw).problem(structure.names) for draw in (_up_to_half, _to_one)] == [
            None,
            None,
        ]
    assert any(problems)
    assert bench(name).precision == "float64"


def test_correct_plan_passes() -> None:
    for name in ("residual_zero_pad", "dense", "depthwise_multiplier_2"):
        model, inputs = networks()[name]
        structure = trace(model, inputs, verify=False)
        assert verified(structure, model.eval(), as_inputs(inputs), {}).names == structure.names


def test_bisection_freezes_only_the_culprit() -> None:
    model, inputs = networks()["plain"]
    structure = trace(model, inputs, verify=False)
    index = next(i for i, plan in enumerate(structure.axes) if plan.tensor == "3.2.weight")
    wrong = list(structure.axes)
    wrong[index] = dataclasses.replace(wrong[index], units=np.roll(wrong[index].units, 1))
    found = verified(dataclasses.replace(structure, axes=tuple(wrong)), model.eval(), as_inputs(inputs), {})
    assert found.names == ("0.0",)
    assert [item.name for item in found.frozen] == ["3.2", "2.0"]


def test_without_renumbers_the_others() -> None:
    model, inputs = networks()["residual_projection"]
    structure = trace(model, inputs, verify=False)
    gone = structure.names[1]
    fewer: Structure = without(structure, {gone: structure.frozen[0]})
    assert gone not in fewer.names
    keep = {name: [0, 2] for name in fewer.names}
    assert fewer.selection(keep).kept == structure.selection(keep).kept
    assert fewer.flops(keep) == structure.flops(keep)


def test_relative_error() -> None:
    assert relative_error(torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0])) == 0.25
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0
    assert not relative_error(torch.tensor([float("nan")]), torch.ones(1)) <= 1
    assert relative_error(torch.tensor([1, 2]), torch.tensor([1, 3])) == 1
