from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from autoprune.allocation import AllocationContext
from autoprune.allocation._knapsack import Group, loss_by_count, solve
from autoprune.allocation._sensitivities import keep_fractions, kept_counts
from autoprune.allocation.knapsack import Knapsack
from autoprune.graph import Structure, trace
from autoprune.recipe import Recipe, Target
from autoprune.repair import Budget, repair
from autoprune.tasks import Evaluation
from autoprune.trial import Bench, measure, prepare

SIZES = (4, 3, 5)
Cost = Callable[[NDArray[np.int64]], float]


def problem(seed: int, *, smooth: bool) -> list[Group]:
    """Groups whose prices rise as more goes; with `smooth` by growing increments."""
    draw = np.random.default_rng(seed)
    found = []
    for size in SIZES:
        increments = draw.exponential(size=size)
        rising = np.cumsum(np.sort(increments) if smooth else increments)
        found.append(Group.of(size, 1, 1, np.append(rising[::-1], 0.0)))
    return found


def price(groups: list[Group], counts: NDArray[np.int64]) -> float:
    return float(sum(g.prices[g.levels.tolist().index(c)] for g, c in zip(groups, counts.tolist(), strict=True)))


def least(groups: list[Group], cost: Cost, budget: float) -> float:
    """Return the least summed price of all count vectors within the budget."""
    every = (np.array(c) for c in itertools.product(*(range(1, n + 1) for n in SIZES)))
    return min(price(groups, c) for c in every if cost(c) <= budget)


def sums(counts: NDArray[np.int64]) -> float:
    return float(np.array([2.0, 0.7, 1.1]) @ counts)


def chain_of_layers(counts: NDArray[np.int64]) -> float:
    """Each layer costs the product of the widths around it."""
    a, b, c = (float(n) for n in counts)
    return 3 * a + a * b + b * c + 2 * c


@pytest.mark.parametrize("cost", [sums, chain_of_layers])
@pytest.mark.parametrize("smooth", [True, False])
def test_solution_is_the_optimum_of_all_that_can_be_enumerated(cost: Cost, smooth: bool) -> None:
    misses = 0
    for seed, share in itertools.product(range(12), (0.8, 0.6, 0.4)):
        groups, budget = problem(seed, smooth=smooth), share * cost(np.array(SIZES))
        counts = solve(groups, cost, budget)
        assert cost(counts) <= budget
        found, optimum = price(groups, counts), least(groups, cost, budget)
        assert found <= 1.35 * optimum
        misses += found > optimum + 1e-9
    # of 36; steps of any height make local optima that an exchange of two groups cannot leave
    assert misses <= {(sums, True): 0, (chain_of_layers, True): 1}.get((cost, smooth), 5)


def test_what_cannot_be_met_gives_the_lowest_levels() -> None:
    assert solve(problem(0, smooth=True), sums, 0.1).tolist() == [1, 1, 1]


def test_a_wide_group_has_few_levels_on_the_grid_down_to_the_least() -> None:
    group = Group.of(100, 12, 4, np.linspace(1, 0, 101), most=10)
    assert group.levels.tolist() == [100, 96, 84, 72, 60, 48, 36, 24, 12]
    assert group.prices[0] == 0
    assert Group.of(7, 1, 1, None).levels.tolist() == [7]


def test_loss_between_measurements_by_hand() -> None:
    found = loss_by_count(8, np.array([6, 4, 2]), np.array([0.01, 0.04, 0.16]))
    assert found[[8, 6, 4, 2]].tolist() == pytest.approx([0.0, 0.01, 0.04, 0.16])
    assert found[7] == pytest.approx(0.01 / 4)  # half of the share that was measured first, squared
    assert found[5] == pytest.approx(0.02)  # geometric mean
    assert found[0] == pytest.approx(0.64)  # the last slope goes on
    assert (np.diff(found) <= 0).all()


def test_levels_that_a_small_group_cannot_tell_apart_count_once() -> None:
    found = loss_by_count(3, np.array([2, 1, 1]), np.array([0.1, 0.4, 0.4]))
    assert found.tolist() == pytest.approx([1.6, 0.4, 0.1, 0.0])


def test_noise_below_the_uncut_loss_counts_as_nothing() -> None:
    found = loss_by_count(4, np.array([3, 2, 1]), np.array([-0.5, -0.1, 0.2]))
    assert found[3] == found[2] < 1e-5
    assert found[1] == pytest.approx(0.2)


def test_levels_and_counts() -> None:
    assert keep_fractions(3) == (0.75, 0.5, 0.25)
    assert kept_counts(10, keep_fractions(9), 1).tolist() == [9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert kept_counts(3, keep_fractions(3), 1).tolist() == [2, 1, 1]
    assert kept_counts(20, keep_fractions(3), 8).tolist() == [8, 8, 8]


@pytest.fixture
def chain() -> Structure:
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 6))
    return trace(model, torch.randn(2, 6))


def context_with(structure: Structure, steep: str, target: float = 0.5) -> AllocationContext:
    """Every removed share x of the steep group raises the loss by 4 x ** 2, of the others by x ** 2 / 10."""
    sizes = {g.name: g.size for g in structure.groups}

    def measured(counts: Mapping[str, int], samples: int) -> Evaluation:
        gone = {name: 1 - counts.get(name, n) / n for name, n in sizes.items()}
        loss = 0.3 + sum((4.0 if name == steep else 0.1) * x**2 for name, x in gone.items())
        return Evaluation(loss, math.exp(-loss), samples)

    return AllocationContext(
        scores={name: torch.ones(n) for name, n in sizes.items()},
        structure=structure,
        full_sizes=sizes,
        cost=structure.total_flops,
        budget=target * structure.flops(),
        measure=measured,
    )


@pytest.mark.parametrize("steep", ["0", "2"])
def test_the_sensitive_group_is_spared_whichever_it_is(chain: Structure, steep: str) -> None:
    path = Knapsack().path(context_with(chain, steep))
    budget = Budget(flops=chain.flops(), params=chain.params(), target=Target(flops_fraction=0.5))
    counts = repair(chain, budget, path=path).counts
    other = "2" if steep == "0" else "0"
    assert counts[steep] > counts[other] + 3


@pytest.mark.parametrize("target", [0.7, 0.5, 0.3])
def test_repair_lands_on_the_optimum_of_the_measured_curves(chain: Structure, target: float) -> None:
    """Among all pairs of widths within the budget none has a clearly smaller sum of true losses."""
    context = context_with(chain, "2", target)
    budget = Budget(flops=chain.flops(), params=chain.params(), target=Target(flops_fraction=target))
    amounts = repair(chain, budget, path=Knapsack(levels=9).path(context))
    assert context.measure is not None

    def loss(a: int, b: int) -> float:
        return context.measure({"0": a, "2": b}, 1).loss  # type: ignore[misc]

    allowed = target * chain.flops()
    every = [(a, b) for a in range(1, 13) for b in range(1, 13) if chain.total_flops(np.array([a, b])) <= allowed]
    found = loss(amounts.counts["0"], amounts.counts["2"])
    optimum = min(loss(a, b) for a, b in every)
    assert optimum <= found <= optimum + 0.05
    assert target - 0.09 < amounts.flops_fraction <= target  # one unit of twelve is up to 8 % here


def test_loses_less_than_uniform_before_training_on_digits(digits_bench: Bench) -> None:
    """Loss on samples that nothing was measured on, summed over three targets."""

    def loss(allocation: object) -> float:
        total = 0.0
        for target in (0.5, 0.35, 0.25):
            parts = {"recovery": ["compensation", "bn_reestimation"], "target": {"flops_fraction": target}}
            prepared = prepare(Recipe.parse({"allocation": allocation, **parts}), digits_bench, 0)
            total += measure(prepared.compressed.model, digits_bench).loss
        return total

    assert loss({"name": "knapsack", "samples": 512, "rounds": 3}) < 0.97 * loss("uniform")


def test_a_round_takes_up_what_the_first_could_not_know(chain: Structure) -> None:
    """Either group alone bears much, both together little: that one of them should stay whole only a round can see."""
    sizes = {g.name: g.size for g in chain.groups}

    def measured(counts: Mapping[str, int], samples: int) -> Evaluation:
        x, y = (1 - counts.get(name, sizes[name]) / sizes[name] for name in ("0", "2"))
        return Evaluation(0.1 + 0.1 * x**2 + 0.11 * y**2 + 4 * x * y, 0.5, samples)

    context = replace(context_with(chain, "2", 0.4), measure=measured)
    budget = Budget(flops=chain.flops(), params=chain.params(), target=Target(flops_fraction=0.4))

    def loss(rounds: int) -> float:
        return measured(repair(chain, budget, path=Knapsack(rounds=rounds).path(context)).counts, 1).loss

    assert loss(6) < 0.5 * loss(1)


def test_cost_of_measuring_is_counted_once(digits_bench: Bench) -> None:
    recipe = Recipe.parse(
        {"allocation": {"name": "knapsack", "samples": 48, "levels": 3, "rounds": 1}, "recovery": ["finetune"]}
    )
    first, second = (prepare(recipe, digits_bench, 0).cost.forward_samples for _ in range(2))
    groups = len(digits_bench.base.structure.groups)
    assert first == 48 * (1 + 3 * groups)
    assert second == 0
