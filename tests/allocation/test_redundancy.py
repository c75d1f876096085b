from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from autoprune.allocation import AllocationContext
from autoprune.allocation.redundancy import Redundancy
from autoprune.criteria.hierarchical_gradient import HierarchicalGradient
from autoprune.errors import UnreachableTarget
from autoprune.evidence.filter_gradients import redundancy, spectrum
from autoprune.recipe import Target
from autoprune.repair import Budget, repair
from autoprune.trial import Bench

EPS = 0.05


@pytest.fixture
def context(digits_bench: Bench) -> AllocationContext:
    structure, evidence = digits_bench.base.structure, digits_bench.evidence
    scores = {g.name: HierarchicalGradient(eps=EPS).score(g, evidence) for g in structure.groups}
    return replace(AllocationContext.of(scores, structure), evidence=evidence)


@pytest.fixture
def least(context: AllocationContext) -> np.ndarray:
    """What the caps leave of every group."""
    assert context.evidence is not None
    grams = (context.evidence.filter_gradients(g) for g in context.structure.groups)
    return context.structure.sizes - np.array([redundancy(spectrum(k), EPS) for k in grams])


def test_without_raising_eps_all_groups_end_at_their_caps(context: AllocationContext, least: np.ndarray) -> None:
    path = Redundancy(eps=EPS, raise_eps=False).path(context)
    assert (path(40.0) == least).all()
    assert all((path(s) >= least).all() for s in (0.1, 0.5, 1.0, 2.0))


def test_raised_eps_passes_the_caps_only_after_all_are_reached(context: AllocationContext, least: np.ndarray) -> None:
    path = Redundancy(eps=EPS).path(context)
    for strength in np.linspace(0, 3, 40):
        kept = path(strength)
        assert (kept >= least).all() or (kept <= least).all()
    assert path(40.0).max() <= 1


def test_within_the_caps_it_is_the_global_ranking_of_the_papers_own_scores(context: AllocationContext) -> None:
    import importlib

    ranking = importlib.import_module("autoprune.allocation.global").Global().path(context)
    path = Redundancy(eps=EPS, raise_eps=False).path(context)
    assert all((path(s) == ranking(s)).all() for s in np.linspace(0, 0.2, 10))


def test_a_target_beyond_the_caps_says_how_far_they_go(context: AllocationContext, least: np.ndarray) -> None:
    structure = context.structure
    far = Target(flops_fraction=0.9 * structure.total_flops(least) / structure.flops())
    budget = Budget(flops=structure.flops(), params=structure.params(), target=far)
    with pytest.raises(UnreachableTarget, match="cannot be reached by this recipe"):
        repair(structure, budget, path=Redundancy(eps=EPS, raise_eps=False).path(context))
    assert repair(structure, budget, path=Redundancy(eps=EPS).path(context)).flops_fraction <= 1
