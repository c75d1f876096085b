"""What every quantisation owes, found by walking the room."""

from __future__ import annotations

import copy
import importlib.util
from typing import Any, cast

import pytest
import torch
from torch import nn

from autoprune import rooms
from autoprune.data import Data, TensorSplit
from autoprune.deployment.quantised import Quantised, measured_on, quantise
from autoprune.errors import CheckFailed, MissingDependency
from autoprune.quantisation import Quantisation
from autoprune.tasks import classification, evaluate, forward
from autoprune.trial import Bench, run_trial

from ..trial.test_run import recipe

NAMES = rooms.names("quantisation")


def method(name: str) -> Quantisation:
    return cast(Quantisation, rooms.build("quantisation", name))


def quantised(name: str, bench: Bench, seed: int = 0) -> Quantised:
    return quantise(bench.model, method(name), bench.data, seed)


@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_small_close_to_the_model_and_leaves_it_untouched(name: str, digits_bench: Bench) -> None:
    before = copy.deepcopy(digits_bench.model.state_dict())
    made = quantised(name, digits_bench)
    assert all(torch.equal(v, before[k]) for k, v in digits_bench.model.state_dict().items())
    assert made.bytes < 0.4 * made.float_bytes
    assert made.float_bytes > 4 * digits_bench.base.params
    found = measured_on(made, digits_bench.data.validation, digits_bench.task, 64)
    float_accuracy = evaluate(digits_bench.model, digits_bench.data.validation, digits_bench.task).accuracy
    assert found["int8_accuracy"] == pytest.approx(float_accuracy, abs=0.03)
    assert (found["int8_bytes"], found["int8_count"]) == (made.bytes, len(digits_bench.data.validation))


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_file_and_touches_no_global_randomness(name: str, digits_bench: Bench) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = quantised(name, digits_bench)
    assert torch.equal(torch.get_rng_state(), before)
    assert quantised(name, digits_bench).content == first.content


@pytest.mark.parametrize("name", NAMES)
def test_several_inputs_by_name(name: str) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(64, 64), nn.Linear(32, 64)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.left(a)) + self.right(b)

    model = Two().eval()
    inputs = {"b": torch.randn(40, 32), "a": torch.randn(40, 64)}
    split = TensorSplit(inputs, torch.zeros(40, dtype=torch.int64))
    made = quantise(model, method(name), Data(split, split, None, "two", 64, "two"), 0)
    found, expected = forward(made.model(), inputs), forward(model, inputs)
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_missing_packages_are_told_before_anything_is_trained(
    name: str, digits_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"quantising by .*autoprune\[export\]") as caught:
        run_trial(recipe(quantisation=name), digits_bench, seed=0)
    assert caught.value.exit_status == 2


def test_a_model_too_small_to_gain_is_an_error(digits_bench: Bench) -> None:
    tiny = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).eval()
    with pytest.raises(CheckFailed, match="too few weights"):
        quantise(tiny, method("int8_static"), digits_bench.data, 0)


def test_a_trial_measures_the_file_and_the_model_apart(digits_bench: Bench) -> None:
    chosen = recipe(quantisation={"name": "int8_static", "samples": 64}, target={"flops_fraction": 0.5})
    outcome = run_trial(chosen, digits_bench, seed=0)
    made: Any = outcome.finished.quantised
    plain = run_trial(chosen.model_copy(update={"quantisation": None}), digits_bench, seed=0)
    assert outcome.metrics["accuracy"] == plain.metrics["accuracy"]
    assert "int8_accuracy" not in plain.metrics
    file_accuracy = evaluate(made.model(), digits_bench.data.validation, classification(), 512).accuracy
    assert outcome.metrics["int8_accuracy"] == file_accuracy
    assert outcome.metrics["int8_bytes"] == len(made.content) < outcome.metrics["float_bytes"]
    extra = 64 + len(digits_bench.data.validation)
    assert outcome.cost.forward_samples == plain.cost.forward_samples + extra
    assert chosen.parse(chosen.plain()) == chosen
