"""What every allocation owes, found by walking the room."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch

from autoprune import rooms
from autoprune.allocation import Allocation
from autoprune.graph import Structure
from autoprune.trial import Bench

STRENGTHS = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 40.0)


def scores_of(structure: Structure) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {g.name: torch.rand(g.size, generator=generator) for g in structure.groups}


@pytest.mark.parametrize("name", rooms.names("allocation"))
def test_path_starts_whole_never_rises_and_ends_empty(name: str, digits_bench: Bench) -> None:
    structure = digits_bench.base.structure
    allocation = cast(Allocation, rooms.build("allocation", name))
    path = allocation.path(scores_of(structure), structure)
    kept_SG = np.stack([path(s) for s in STRENGTHS])
    assert (kept_SG[0] == [g.size for g in structure.groups]).all()
    assert (np.diff(kept_SG, axis=0) <= 0).all()
    assert kept_SG[-1].max() <= 1


@pytest.mark.parametrize("name", rooms.names("allocation"))
def test_groups_without_scores_stay_whole(name: str, digits_bench: Bench) -> None:
    structure = digits_bench.base.structure
    scores = scores_of(structure)
    left_out = structure.groups[1].name
    del scores[left_out]
    kept_G = cast(Allocation, rooms.build("allocation", name)).path(scores, structure)(3.0)
    assert kept_G[1] == structure.groups[1].size
    assert (np.delete(kept_G, 1) < np.delete(np.array([g.size for g in structure.groups]), 1)).all()


@pytest.mark.parametrize("name", rooms.names("allocation"))
def test_strength_one_takes_half_of_a_default_allocation(name: str, digits_bench: Bench) -> None:
    structure = digits_bench.base.structure
    kept_G = cast(Allocation, rooms.build("allocation", name)).path(scores_of(structure), structure)(1.0)
    assert kept_G.sum() == pytest.approx(sum(g.size for g in structure.groups) / 2, abs=1)
