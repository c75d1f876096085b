"""What every allocation owes, found by walking the room."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch

from autoprune import rooms
from autoprune.allocation import Allocation, AllocationContext
from autoprune.errors import BadRecipe
from autoprune.evidence import Evidence
from autoprune.fields import hyperparameters
from autoprune.graph import Structure
from autoprune.tasks import Evaluation
from autoprune.trial import Bench

STRENGTHS = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 40.0)
Within = Callable[[Mapping[str, torch.Tensor]], AllocationContext]


def scores_of(structure: Structure) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {g.name: torch.rand(g.size, generator=generator) for g in structure.groups}


def built(name: str) -> Allocation:
    """With defaults, but few samples where models are measured."""
    few = {"samples": 48} if "samples" in hyperparameters(rooms.method_class("allocation", name)) else {}
    return cast(Allocation, rooms.build("allocation", {"name": name} | few))


@pytest.mark.parametrize("name", rooms.names("allocation"))
def test_path_starts_whole_never_rises_and_ends_empty(name: str, digits_bench: Bench, within_digits: Within) -> None:
    structure = digits_bench.base.structure
    path = built(name).path(within_digits(scores_of(structure)))
    kept_SG = np.stack([path(s) for s in STRENGTHS])
    assert (kept_SG[0] == [g.size for g in structure.groups]).all()
    assert (np.diff(kept_SG, axis=0) <= 1e-9).all()
    assert kept_SG[-1].max() <= 1


@pytest.mark.parametrize("name", rooms.names("allocation"))
def test_groups_without_scores_stay_whole(name: str, digits_bench: Bench, within_digits: Within) -> None:
    structure = digits_bench.base.structure
    scores = scores_of(structure)
    left_out = structure.groups[1].name
    del scores[left_out]
    kept_G = built(name).path(within_digits(scores))(3.0)
    assert kept_G[1] == structure.groups[1].size
    assert (np.delete(kept_G, 1) < np.delete(np.array([g.size for g in structure.groups]), 1)).all()


@pytest.mark.parametrize("name", rooms.names("allocation"))
def test_strength_one_takes_half_of_a_default_allocation(name: str, digits_bench: Bench, within_digits: Within) -> None:
    structure = digits_bench.base.structure
    kept_G = built(name).path(within_digits(scores_of(structure)))(1.0)
    assert kept_G.sum() == pytest.approx(sum(g.size for g in structure.groups) / 2, abs=1)


@pytest.mark.parametrize("name", rooms.names("allocation"))
def test_a_missing_need_is_said(name: str, digits_bench: Bench) -> None:
    made = built(name)
    bare = AllocationContext.of(scores_of(digits_bench.base.structure), digits_bench.base.structure)
    if made.needs - {Evidence.WEIGHTS}:
        with pytest.raises(BadRecipe, match=f"allocation '{name}'"):
            made.path(bare)
    else:
        assert made.path(bare)(0.0).sum() == digits_bench.base.structure.sizes.sum()


@pytest.mark.parametrize("name", rooms.names("allocation"))
def test_what_is_measured_is_said_beforehand(name: str, digits_bench: Bench, within_digits: Within) -> None:
    structure, asked = digits_bench.base.structure, list[int]()
    context = within_digits(scores_of(structure))
    measure = context.measure_for(name)

    def counting(counts: Mapping[str, int], samples: int) -> Evaluation:
        asked.append(samples)
        return measure(counts, samples)

    made = built(name)
    made.path(replace(context, measure=counting))
    most = made.measured_samples(len(structure.groups))
    assert 0.6 * most <= sum(asked) <= most
    assert (most > 0) == (Evidence.GROUP_SENSITIVITIES in made.needs)
