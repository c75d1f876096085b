from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch
from torch import nn

from autoprune import rooms
from autoprune.allocation import Allocation, AllocationContext
from autoprune.allocation.per_group import PerGroup
from autoprune.allocation.uniform import Uniform
from autoprune.errors import UnreachableTarget
from autoprune.graph import Structure, trace
from autoprune.lowrank import RankPath
from autoprune.lowrank.svd import Svd
from autoprune.lowrank.tucker2 import Tucker2
from autoprune.recipe import Target
from autoprune.repair import Amounts, Budget, repair
from autoprune.tasks import Evaluation
from autoprune.trial import Bench

Global = importlib.import_module("autoprune.allocation.global").Global


def budget(structure: Structure, **fractions: float | None) -> Budget:
    target = Target(**({"flops_fraction": None} | fractions))  # type: ignore[arg-type]
    return Budget(flops=structure.flops(), params=structure.params(), target=target)


def random_scores(structure: Structure, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.rand(g.size, generator=generator) for g in structure.groups}


def counts_of(structure: Structure, amounts: Amounts) -> np.ndarray:
    return np.array([amounts.counts[g.name] for g in structure.groups])


def mlp() -> Structure:
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 5))
    return trace(model, torch.randn(2, 10))


def test_by_hand() -> None:
    """MACs 10a + ab + 5b, whole 450. Half is 225: a = 12, b = 6 cost 222, one more of either exceeds it."""
    structure = mlp()
    path = Uniform().path(AllocationContext.of(random_scores(structure), structure))
    found = repair(structure, budget(structure, flops_fraction=0.5), path=path)
    assert dict(found.counts) == {"0": 12, "2": 6}
    assert found.flops_fraction == 222 / 450


def made_up(counts: Mapping[str, int], samples: int) -> Evaluation:
    """Some groups bear more than others; loss and accuracy follow the units that stay."""
    hurt = sum((1 + len(name) % 5) / (1 + count) for name, count in counts.items())
    return Evaluation(0.1 + hurt, 1 / (1 + hurt), samples)


@pytest.mark.parametrize("name", rooms.names("allocation"))
@pytest.mark.parametrize("fraction", [0.9, 0.5, 0.35, 0.25])
@pytest.mark.parametrize("seed", [0, 1])
def test_lands_within_the_target_and_no_more_than_one_unit_below(
    name: str, fraction: float, seed: int, digits_bench: Bench
) -> None:
    structure = digits_bench.base.structure
    context = replace(
        AllocationContext.of(random_scores(structure, seed), structure, fraction),
        evidence=digits_bench.evidence,
        measure=made_up,
    )
    path = cast(Allocation, rooms.build("allocation", name)).path(context)
    found = repair(structure, budget(structure, flops_fraction=fraction), path=path)
    counts_G = counts_of(structure, found)
    allowed = fraction * structure.flops()
    assert structure.total_flops(counts_G) <= allowed
    one_more = [counts_G + row for row in np.eye(len(counts_G), dtype=int)]
    room = [c for c in one_more if (c <= structure.sizes).all()]
    assert max(structure.total_flops(c) for c in room) > allowed
    assert found.flops_fraction == pytest.approx(structure.total_flops(counts_G) / structure.flops())


def test_two_targets_are_both_met_and_one_is_tight(digits_bench: Bench) -> None:
    structure = digits_bench.base.structure
    path = Uniform().path(AllocationContext.of(random_scores(structure), structure))
    found = repair(structure, budget(structure, flops_fraction=0.6, params_fraction=0.3), path=path)
    assert found.flops_fraction <= 0.6
    assert 0.28 < found.params_fraction <= 0.3


def test_rounding_is_respected() -> None:
    model = nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 5))
    structure = trace(model, torch.randn(2, 10), round_to=8)
    path = Uniform().path(AllocationContext.of(random_scores(structure), structure))
    for fraction in (0.9, 0.6, 0.4, 0.3):
        found = repair(structure, budget(structure, flops_fraction=fraction), path=path)
        assert found.counts["0"] in (8, 16, 24)
        assert found.counts["2"] in (8, 16, 20)  # multiples of eight, or whole
        assert found.flops_fraction <= fraction


def test_order_of_the_keep_fractions_survives(digits_bench: Bench) -> None:
    structure = digits_bench.base.structure
    names = [g.name for g in structure.groups]
    wanted = dict(zip(names, np.linspace(0.3, 0.95, len(names)).tolist(), strict=True))
    path = PerGroup(keep_fraction=wanted).path(AllocationContext.of(random_scores(structure), structure))
    found = repair(structure, budget(structure, flops_fraction=0.5), path=path)
    kept = [found.counts[g.name] / g.size for g in structure.groups]
    assert all(a <= b + 1 / g.size for a, b, g in zip(kept, kept[1:], structure.groups[1:], strict=False))


def test_global_keeps_the_best_of_the_network(digits_bench: Bench) -> None:
    structure = digits_bench.base.structure
    scores = random_scores(structure)
    found = repair(
        structure, budget(structure, flops_fraction=0.5), path=Global().path(AllocationContext.of(scores, structure))
    )
    kept, gone = [], []
    for group in structure.groups:
        ranked = scores[group.name].sort(descending=True).values
        kept += ranked[: found.counts[group.name]].tolist()
        gone += ranked[found.counts[group.name] :].tolist()
    assert min(kept) > max(gone)


def test_minimum_share_is_kept(digits_bench: Bench) -> None:
    structure = digits_bench.base.structure
    name = structure.groups[0].name
    path = PerGroup(keep_fraction={name: 0.01, "*": 0.9}).path(
        AllocationContext.of(random_scores(structure), structure)
    )
    free = repair(structure, budget(structure, flops_fraction=0.5), path=path)
    held = repair(structure, budget(structure, flops_fraction=0.5), path=path, min_keep_fraction=0.25)
    assert free.counts[name] == 1
    assert held.counts[name] == structure.groups[0].size // 4


def test_target_below_the_reachable_names_the_least(digits_bench: Bench) -> None:
    structure = digits_bench.base.structure
    path = Uniform().path(AllocationContext.of(random_scores(structure), structure))
    with pytest.raises(UnreachableTarget, match=r"flops_fraction 0.1 cannot be reached .* flops_fraction 0.5\d\d"):
        repair(structure, budget(structure, flops_fraction=0.1), path=path, min_keep_fraction=0.7)


def test_ranks_alone_meet_the_target(digits_bench: Bench) -> None:
    structure = digits_bench.base.structure
    found = repair(structure, budget(structure, flops_fraction=0.6), path=None, low_rank=Svd(rank_fraction=0.5))
    assert (counts_of(structure, found) == structure.sizes).all()
    assert found.ranks
    assert 0.58 < found.flops_fraction <= 0.6


def test_channels_and_ranks_share_one_strength(digits_bench: Bench) -> None:
    structure = digits_bench.base.structure
    path = Uniform().path(AllocationContext.of(random_scores(structure), structure))
    both = repair(structure, budget(structure, flops_fraction=0.4), path=path, low_rank=Svd(rank_fraction=0.5))
    channels = repair(structure, budget(structure, flops_fraction=0.4), path=path)
    assert both.ranks
    assert both.strength < channels.strength
    assert 0.38 < both.flops_fraction <= 0.4


@pytest.mark.parametrize("fraction", [0.9, 0.6, 0.4, 0.2])
def test_ranks_of_quadratic_cost_meet_the_target_and_leave_no_room_for_another(
    fraction: float, digits_bench: Bench
) -> None:
    structure, method = digits_bench.base.structure, Tucker2()
    found = repair(structure, budget(structure, flops_fraction=fraction), path=None, low_rank=method)
    assert found.ranks
    assert found.flops_fraction <= fraction
    layers = {layer.name: layer for layer in structure.layers}
    for name, rank in found.ranks.items():
        layer = layers[name]
        widths = layer.in_features, layer.out_features
        more = method.flops(layer, *widths, rank + 1) - method.flops(layer, *widths, rank)
        assert found.flops_fraction * structure.flops() + more > fraction * structure.flops()


def test_a_rank_fraction_is_the_share_of_flops_for_any_cost() -> None:
    """One 3x3 convolution, 16 to 16 channels: rank R of Tucker-2 costs 16 R + 9 R^2 + 16 R, the layer 2304."""
    structure = trace(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1)), torch.randn(2, 16, 5, 5))
    counts = np.array([], dtype=np.int64)
    path = RankPath(structure, Tucker2(rank_fraction=0.5), {})
    assert path.at(counts, 0.0) == {}
    # 0.5: 9 R^2 + 32 R <= 1152 gives R = 9; 0.25: 576 gives 6
    assert path.at(counts, 1.0) == {0: 9}
    assert path.at(counts, 2.0) == {0: 6}
    assert path.at(counts, 50.0) == {0: 1}
    # spatial: R of 3 * 16 + 3 * 16 each; 0.5 of 24
    assert RankPath(structure, Svd(rank_fraction=0.5), {}).at(counts, 1.0) == {0: 12}


def test_energy_spreads_the_ranks_by_hand() -> None:
    """Squares 8, 4, 2, 1, 1 and 1, 1, 1, 1 of two layers: three quarters need ranks 2 and 3."""
    structure = trace(nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 4)), torch.randn(2, 5), exclude=("0", "1"))
    energies = {"0": np.array([8, 12, 14, 15, 16]) / 16, "1": np.array([1, 2, 3, 4]) / 4}
    path = RankPath(structure, Svd(rank_fraction=0.75, ranks="energy"), energies)
    counts = np.array([g.size for g in structure.groups], dtype=np.int64)
    assert path.at(counts, 0.0) == {}
    assert path.at(counts, 1.0) == {0: 2, 1: 3}
    assert path.at(counts, 1.001) == {0: 2, 1: 3}
    assert path.at(counts, 0.999) == {0: 3, 1: 4}
    assert path.at(counts, 40.0) == {0: 1, 1: 1}


def test_by_energy_a_layer_of_low_rank_gives_first(digits_bench: Bench) -> None:
    structure, method = digits_bench.base.structure, Svd(ranks="energy")
    energies = method.energies(structure.layers, digits_bench.evidence)
    assert all(shares[-1] == pytest.approx(1.0) for shares in energies.values())
    thin = "layer3.conv2"
    flat = {name: np.arange(1, len(shares) + 1) / len(shares) for name, shares in energies.items()}
    steep = flat | {thin: np.maximum(flat[thin], 0.999)}
    even = repair(structure, budget(structure, flops_fraction=0.6), path=None, low_rank=method, energies=flat)
    found = repair(structure, budget(structure, flops_fraction=0.6), path=None, low_rank=method, energies=steep)
    assert found.ranks[thin] < even.ranks[thin]
    assert 0.58 < found.flops_fraction <= 0.6
    assert sum(found.ranks.get(n, 99) for n in flat if n != thin) > sum(
        even.ranks.get(n, 99) for n in flat if n != thin
    )


def test_with_low_rank_a_target_of_one_factorises_nothing(digits_bench: Bench) -> None:
    structure = digits_bench.base.structure
    found = repair(structure, budget(structure, flops_fraction=1.0), path=None, low_rank=Svd())
    assert (found.ranks, found.flops_fraction) == ({}, 1.0)


def test_nothing_is_removed_for_a_target_of_one(digits_bench: Bench) -> None:
    structure = digits_bench.base.structure
    path = Uniform().path(AllocationContext.of(random_scores(structure), structure))
    found = repair(structure, budget(structure, flops_fraction=1.0), path=path)
    assert (counts_of(structure, found) == structure.sizes).all()
    assert found.strength == 0
