from __future__ import annotations

import pytest

from autoprune.allocation import AllocationContext
from autoprune.allocation.per_stage import PerStage
from autoprune.errors import BadRecipe
from autoprune.trial import Bench


def test_groups_of_one_size_share_a_fraction(digits_bench: Bench) -> None:
    import torch

    structure = digits_bench.base.structure
    context = AllocationContext.of({g.name: torch.ones(g.size) for g in structure.groups}, structure)
    stages = structure.stages
    assert sorted(set(stages.values())) == ["2x2", "4x4", "8x8"]
    assert stages["conv1"] == stages["layer1.conv1"] == "8x8"
    kept_G = PerStage(keep_fraction={"8x8": 0.9, "2*": 0.25}).path(context)(1.0)
    wanted = {"8x8": 0.9, "4x4": 1.0, "2x2": 0.25}
    assert kept_G.tolist() == pytest.approx([g.size * wanted[stages[g.name]] for g in structure.groups])


def test_a_stage_that_is_not_there_is_an_error(digits_bench: Bench) -> None:
    import torch

    structure = digits_bench.base.structure
    context = AllocationContext.of({g.name: torch.ones(g.size) for g in structure.groups}, structure)
    with pytest.raises(BadRecipe, match=r"per_stage.keep_fraction: no stage matches '7x7'; there are 8x8"):
        PerStage(keep_fraction={"7x7": 0.5}).path(context)
