"""Models against their base model, by a clock of the test's own."""

from __future__ import annotations

import copy
import dataclasses
import json
from itertools import count
from typing import Any

import pytest
import torch
from torch import nn

from autoprune.compressed import exchange
from autoprune.cost import count_flops
from autoprune.cost.timing import Protocol, Ratio
from autoprune.deployment.quantised import method_of, quantise
from autoprune.deployment.speed import Candidate, Measured, check_one_setting, measure_speed
from autoprune.errors import BadInput
from autoprune.replacement.haste import Haste
from autoprune.trial import Bench

QUICK = Protocol(warm_up=1, most_warm_up=1, settled_calls=1, calls=10, seconds=0.0, block=5, retries=0)
INPUTS = torch.zeros(2, 6)


class Ticks:
    """A clock on which the time between two looks goes through a list, again and again."""

    def __init__(self, *durations: float) -> None:
        self._now, self._durations, self._looks = 0.0, durations, count()

    def __call__(self) -> float:
        look = next(self._looks)
        if look % 2:
            self._now += self._durations[(look // 2) % len(self._durations)]
        return self._now


def wide(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3)).eval()


def measured(base_ms: float, own_ms: float, width: int = 8) -> Measured:
    """Time a network of this width against one of 16, on a clock that tells these times."""
    # one warm-up call each, then blocks of five in turns
    clock = Ticks(base_ms / 1000, own_ms / 1000, *[base_ms / 1000] * 5, *[own_ms / 1000] * 5, *[base_ms / 1000] * 5,
                  *[own_ms / 1000] * 5)  # fmt: skip
    ((found,),) = measure_speed(wide(16), [Candidate(model=wide(width))], INPUTS, "eager", protocol=QUICK, clock=clock)
    return found


def test_speed_up_stands_beside_the_flops() -> None:
    found = measured(6.0, 2.0)
    assert found.flops_fraction == pytest.approx(0.5)
    assert found.speed_up.value == pytest.approx(3.0)
    assert (found.base.median_ms, found.own.median_ms) == (pytest.approx(6.0), pytest.approx(2.0))
    assert (found.own.calls, found.own.noisy, found.gained_nothing) == (10, False, False)
    assert (found.setting.backend, found.setting.batch_size, found.setting.input_shape) == ("eager", 2, (6,))
    assert found.precision == "float32"


def test_flops_that_fell_while_the_time_did_not_are_flagged() -> None:
    assert measured(2.0, 2.0).gained_nothing
    assert measured(2.0, 3.0).gained_nothing
    same_flops = measured(2.0, 2.0, width=16)
    assert same_flops.flops_fraction == 1.0
    assert not same_flops.gained_nothing


def test_an_interval_that_holds_one_is_no_gain() -> None:
    found = measured(6.0, 2.0)
    doubtful = dataclasses.replace(found, speed_up=Ratio(value=1.1, low=0.99, high=1.2))
    assert doubtful.gained_nothing
    assert not dataclasses.replace(found, speed_up=Ratio(value=1.1, low=1.01, high=1.2)).gained_nothing


def test_resources_are_those_of_one_sample() -> None:
    found = measured(6.0, 2.0)
    assert found.resources.flops == count_flops(wide(8), INPUTS) == 2 * 8 * 9
    assert found.resources.weight_bytes == 4 * (6 * 8 + 8 + 8 * 3 + 3)
    # input and first layer: 6 + 8; its relu: 8 + 8
    assert found.resources.peak_activation_bytes == 4 * 16
    macs, moved = 72, found.resources.weight_bytes + 2 * 4 * (6 + 8 + 8 + 3)
    assert found.resources.energy_proxy_uj == pytest.approx((macs * 4.6 + moved * 160) / 1e6)


def test_it_reads_back_what_it_wrote() -> None:
    found = measured(6.0, 2.0)
    assert Measured.parse(json.loads(json.dumps(found.plain()))) == found


@pytest.mark.parametrize("change", [{"threads": 2}, {"backend": "onnxruntime"}, {"batch_size": 1}, {"machine": "x"}])
def test_times_of_two_settings_are_never_put_together(change: dict[str, Any]) -> None:
    found = measured(6.0, 2.0)
    other = dataclasses.replace(found, setting=dataclasses.replace(found.setting, **change))
    check_one_setting([found, found])
    with pytest.raises(BadInput, match="do not compare"):
        check_one_setting([found, other])


@pytest.mark.parametrize("backend", ["eager", "onnxruntime"])
def test_layers_whose_cost_depends_on_their_input_are_timed_too(digits_bench: Bench, backend: str) -> None:
    model = copy.deepcopy(digits_bench.model)
    assert exchange(model, Haste())
    inputs = digits_bench.data.example_inputs
    ((found,),) = measure_speed(digits_bench.model, [Candidate(model=model)], inputs, backend, protocol=QUICK)
    # what it saves depends on the input: by dense kernels it saves nothing
    assert found.flops_fraction == 1.0
    assert found.resources.peak_activation_bytes > found.base_resources.peak_activation_bytes


def test_a_quantised_file_is_timed_with_its_own_size_and_accuracy(digits_bench: Bench) -> None:
    made = quantise(digits_bench.model, method_of("int8_static"), digits_bench.data, 0)
    candidate = Candidate(model=digits_bench.model, quantised=made, int8_accuracy=0.5)
    inputs = digits_bench.data.example_inputs
    ((plain, small),) = measure_speed(digits_bench.model, [candidate], inputs, "onnxruntime", protocol=QUICK)
    assert (plain.precision, plain.accuracy, plain.file_bytes) == ("float32", None, None)
    assert (small.precision, small.accuracy, small.file_bytes) == ("int8_static", 0.5, made.bytes)
    assert plain.setting == small.setting
    assert "onnxruntime" in plain.setting.versions
    assert small.resources.peak_activation_bytes * 4 == plain.resources.peak_activation_bytes
    assert small.resources.energy_proxy_uj < plain.resources.energy_proxy_uj
    ((only,),) = measure_speed(digits_bench.model, [candidate], inputs, "eager", protocol=QUICK)
    assert only.precision == "float32"
