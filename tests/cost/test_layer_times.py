from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.cost import layer_times
from autoprune.cost.layer_times import LayerTimes, time_layers
from autoprune.errors import UnreachableTarget
from autoprune.graph import Structure, trace
from autoprune.recipe import Recipe
from autoprune.trial import Bench, budget_of, prepare
from autoprune.trial.choosing import _limited


def convolutions() -> tuple[nn.Module, torch.Tensor]:
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU())
    rest = (nn.Conv2d(8, 16, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    torch.manual_seed(0)
    return nn.Sequential(*layers, *rest).eval(), torch.randn(1, 3, 8, 8)


def by_hand(structure: Structure, **changes: float) -> LayerTimes:
    """Times that are 0.01 * read * written for every layer."""
    full = structure.layer_widths(structure.sizes)
    grids = [np.stack([np.linspace(1, width, 5) for width in full[:, side]]) for side in (0, 1)]
    positions = [sum(float(np.prod(c.out_positions)) for c in layer.calls) for layer in structure.layers]
    known = {"scale": 1.0, "rest": 0.0, "per_activation": 0.0} | changes
    return LayerTimes(
        layers=tuple(layer.name for layer in structure.layers),
        read=grids[0],
        written=grids[1],
        ms=0.01 * grids[0][:, :, None] * grids[1][:, None, :],
        positions=np.array(positions),
        block=1,
        base_ms=1.0,
        whole_ms=known["scale"] * 0.01 * float((full[:, 0] * full[:, 1]).sum()) + known["rest"],
        error=0.0,
        device="cpu",
        threads=1,
        **known,
    )


def test_by_hand() -> None:
    """Two linear layers, 10 x 20 and 20 x 5: 2 + 1 ms; with 7 of the 20 units 0.7 + 0.35 ms."""
    structure = trace(nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5)), torch.randn(2, 10))
    times = by_hand(structure)
    assert times.predicted_ms(structure, structure.sizes) == pytest.approx(3.0)
    assert times.predicted_ms(structure, np.array([7])) == pytest.approx(1.05)
    assert times.fraction(structure, np.array([7])) == pytest.approx(0.35)
    more = by_hand(structure, scale=2.0, rest=0.5, per_activation=0.1)
    # 7 + 5 activations of one sample
    assert more.predicted_ms(structure, np.array([7])) == pytest.approx(2 * 1.05 + 0.5 + 0.1 * 12)


def test_widths_count_as_whole_blocks() -> None:
    """With blocks of 4, 7 of the 20 units count as 8, and the 10 and 5 at the ends, being all there is, do not."""
    structure = trace(nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5)), torch.randn(2, 10))
    times = replace(by_hand(structure), block=4)
    assert times.predicted_ms(structure, np.array([7])) == pytest.approx(0.8 + 0.4)
    assert times.predicted_ms(structure, np.array([5])) == times.predicted_ms(structure, np.array([8]))
    assert times.predicted_ms(structure, structure.sizes) == pytest.approx(3.0)


def test_a_cut_structure_has_the_times_of_its_widths() -> None:
    model, x = convolutions()
    structure = trace(model, x)
    times = by_hand(structure)
    counts = np.maximum(structure.sizes // 2, 1)
    keep = {name: list(range(int(count))) for name, count in zip(structure.names, counts, strict=True)}
    cut = structure.restrict(keep)
    assert times.predicted_ms(cut, cut.sizes) == pytest.approx(times.predicted_ms(structure, counts))


def test_without_a_block_its_layers_take_no_time(deep_bench: Bench) -> None:
    structure = deep_bench.base.structure
    times = by_hand(structure)
    less = structure.without_blocks([structure.blocks[0].name])
    assert len(less.layers) < len(structure.layers)
    gone = {layer.name for layer in structure.layers} - {layer.name for layer in less.layers}
    widths = structure.layer_widths(structure.sizes)
    saved = sum(
        0.01 * read * written
        for layer, (read, written) in zip(structure.layers, widths, strict=True)
        if layer.name in gone
    )
    whole = times.predicted_ms(structure, structure.sizes)
    assert times.predicted_ms(less, less.sizes) == pytest.approx(whole - saved)


def test_plain_data_and_back() -> None:
    model, x = convolutions()
    structure = trace(model, x)
    times = by_hand(structure, scale=1.5)
    again = LayerTimes.parse(json.loads(json.dumps(times.plain())))
    counts = structure.sizes // 2
    assert again.predicted_ms(structure, counts) == times.predicted_ms(structure, counts)


def test_coefficients_are_found_and_none_is_negative() -> None:
    draws = np.random.default_rng(0)
    columns = draws.uniform(0.1, 1.0, (9, 3))
    found, left = layer_times._least_squares(columns, columns @ np.array([2.0, 0.0, 0.5]))
    assert found == pytest.approx((2.0, 0.0, 0.5))
    assert left == pytest.approx(0.0, abs=1e-20)
    found, left = layer_times._least_squares(columns, columns @ np.array([2.0, -1.0, 0.5]))
    assert min(found) >= 0
    assert max(found) > 0
    assert left > 0.01


def test_every_kind_of_layer_is_timed_at_widths_that_it_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of a call is taken to be the elements of its output: what is left is bookkeeping, exact."""
    sizes: list[int] = []

    def elements(run: object, device: torch.device, least_calls: int = 3) -> float:
        found = run()  # type: ignore[operator]
        sizes.append(found.numel())
        return float(found.numel())

    monkeypatch.setattr(layer_times, "_shortest_ms", elements)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.ConvTranspose2d(12, 6, 2, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 10),
    ).eval()
    x = torch.randn(1, 3, 8, 8)
    structure = trace(model, x)
    times = time_layers(model, structure, x)
    assert len(sizes) > 20
    outputs = structure.layer_widths(structure.sizes)[:, 1] * times.positions
    assert times.ms[:, -1, -1].tolist() == pytest.approx(outputs.tolist())
    assert (np.diff(times.written, axis=1) >= 0).all()
    assert (np.diff(times.read, axis=1) >= 0).all()


def test_a_timed_model_is_the_sum_of_its_parts() -> None:
    model, x = convolutions()
    structure = trace(model, x)
    times = time_layers(model, structure, x)
    assert min(times.base_ms, times.whole_ms) > 0
    assert np.isfinite(times.error)
    assert times.fraction(structure, structure.sizes) == pytest.approx(1.0)


@pytest.fixture
def timed_bench(digits_bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A bench whose times are those by hand, as another process has written them."""
    structure = digits_bench.base.structure
    file = tmp_path / f"layer_times_{structure.fingerprint[:16]}_cpu_{torch.get_num_threads()}_threads.json"
    file.write_text(json.dumps(by_hand(structure).plain()))
    monkeypatch.setattr("autoprune.trial.bench.time_layers", None)
    return replace(digits_bench, evidence_folder=tmp_path)


def latency_recipe(**parts: object) -> Recipe:
    target = {"flops_fraction": None, "latency_fraction": 0.5}
    return Recipe.parse({"criterion": "l1_norm", "target": target, "recovery": ["bn_reestimation"], **parts})


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_a_recipe_meets_a_latency_by_no_more_than_one_unit(timed_bench: Bench, allocation: str) -> None:
    found = prepare(latency_recipe(allocation=allocation), timed_bench, 0)
    structure, times = timed_bench.base.structure, timed_bench.layer_times
    counts = np.array([found.amounts.counts[name] for name in structure.names])
    assert found.amounts.latency_fraction == pytest.approx(times.fraction(structure, counts))
    assert found.amounts.latency_fraction <= 0.5
    one_more = [counts + row for row in np.eye(len(counts), dtype=int)]
    assert max(times.fraction(structure, c) for c in one_more if (c <= structure.sizes).all()) > 0.5
    assert any("latency: predicted" in note for note in found.notes)


def test_latency_and_flops_are_met_together(timed_bench: Bench) -> None:
    target = {"flops_fraction": 0.4, "latency_fraction": 0.9}
    amounts = prepare(latency_recipe(target=target), timed_bench, 0).amounts
    assert amounts.flops_fraction <= 0.4
    assert amounts.latency_fraction is not None
    assert amounts.latency_fraction <= 0.9


def test_layers_of_another_kind_are_refused(timed_bench: Bench) -> None:
    with pytest.raises(UnreachableTarget, match="low_rank makes layers of another kind"):
        prepare(latency_recipe(low_rank="svd"), timed_bench, 0)


def test_a_latency_out_of_reach_names_the_least(timed_bench: Bench) -> None:
    target = {"flops_fraction": None, "latency_fraction": 0.001}
    with pytest.raises(UnreachableTarget, match=r"latency_fraction 0\.0"):
        prepare(latency_recipe(target=target), timed_bench, 0)


def test_an_allocation_sees_the_limit_that_the_repair_meets(timed_bench: Bench) -> None:
    """The whole model counts as predicted on both sides, whatever it was measured to take."""
    structure, times = timed_bench.base.structure, timed_bench.layer_times
    cost, budget = _limited(latency_recipe().target, timed_bench, structure)
    assert times.base_ms != times.whole_ms
    assert budget / cost(structure.sizes) == pytest.approx(0.5)


def test_a_budget_of_latency_needs_times(timed_bench: Bench) -> None:
    recipe = latency_recipe()
    assert budget_of(timed_bench, recipe.target).latency is not None
    with pytest.raises(ValueError, match="needs a way to predict"):
        replace(budget_of(timed_bench, recipe.target), latency=None)
