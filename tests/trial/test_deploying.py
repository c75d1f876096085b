"""What a model's metrics become where the deployed file is what counts."""

from __future__ import annotations

import pytest

from autoprune.quantisation.int8_dynamic import Int8Dynamic
from autoprune.quantisation.int8_static import Int8Static
from autoprune.recipe import Recipe
from autoprune.trial import Bench, as_deployed, finish, measure, metrics_of, on_split, quantised

INT8 = Recipe.parse({"quantisation": "int8_dynamic"})
FILE = {"int8_accuracy": 0.5, "int8_loss": 2.0, "int8_bytes": 1000.0, "float_bytes": 3000.0}


def test_a_float_model_is_its_own_artefact(digits_bench: Bench) -> None:
    metrics = metrics_of(measure(digits_bench.model, digits_bench, 64))
    base = as_deployed(metrics, digits_bench.model, digits_bench)
    assert {name: base[name] for name in metrics} == metrics
    assert (base["float_accuracy"], base["float_loss"]) == (metrics["accuracy"], metrics["loss"])
    tensors = [*digits_bench.model.parameters(), *digits_bench.model.buffers()]
    assert base["deployed_bytes"] == 4 * sum(t.numel() for t in tensors)
    assert [base[f"deployed_{name}_fraction"] for name in ("bytes", "activation_bytes", "energy_uj")] == [1.0] * 3


def test_accuracy_and_size_are_those_of_the_int8_file(digits_bench: Bench) -> None:
    metrics = metrics_of(measure(digits_bench.model, digits_bench, 64))
    base = as_deployed(metrics, digits_bench.model, digits_bench)
    found = as_deployed(metrics | FILE, digits_bench.model, digits_bench, Int8Static(), base)
    assert (found["accuracy"], found["loss"], found["deployed_bytes"]) == (0.5, 2.0, 1000.0)
    assert (found["float_accuracy"], found["float_loss"]) == (metrics["accuracy"], metrics["loss"])
    assert found["deployed_bytes_fraction"] == 1000 / base["deployed_bytes"]
    # a quarter of the bits: a quarter of the activations, less than a quarter of the energy (cheaper operations)
    assert found["deployed_activation_bytes_fraction"] == 0.25
    assert 0 < found["deployed_energy_uj_fraction"] < 0.25
    assert found["flops"] == metrics["flops"]
    # activations between layers are float32
    dynamic = as_deployed(metrics | FILE, digits_bench.model, digits_bench, Int8Dynamic(), base)
    assert dynamic["deployed_activation_bytes_fraction"] == 1.0
    assert found["deployed_energy_uj"] < dynamic["deployed_energy_uj"] < base["deployed_energy_uj"]


def test_the_test_split_measures_the_same_file(digits_bench: Bench) -> None:
    model, validation = digits_bench.model, digits_bench.data.validation
    found = finish(model, INT8, digits_bench, seed=3)
    again = quantised(model, INT8, digits_bench, seed=3)
    assert again is not None
    assert found.quantised is not None
    assert again.content == found.quantised.content
    on = on_split(model, again, validation, digits_bench)
    assert on["accuracy"] == found.metrics["int8_accuracy"]
    plain = on_split(model, None, validation, digits_bench)
    assert on["float_accuracy"] == plain["accuracy"]
    assert on["float_loss"] == pytest.approx(plain["loss"])
    assert "float_accuracy" not in plain
    assert quantised(model, Recipe(), digits_bench, seed=3) is None
