from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from autoprune.allocation import AllocationContext
from autoprune.allocation.exemplars import Exemplars
from autoprune.base import make_base
from autoprune.evidence.exemplars import exemplars
from autoprune.trial import Bench


def test_a_stage_with_a_larger_beta_keeps_as_many_as_there_are_exemplars_at_it(digits_bench: Bench) -> None:
    """Betas 0.6 and 0.9 by stage: at the strength where the first group is at 0.6, the others are at 0.6 and 0.9."""
    structure = digits_bench.base.structure
    scores = {g.name: torch.rand(g.size) for g in structure.groups}
    context = replace(AllocationContext.of(scores, structure), evidence=digits_bench.evidence)
    stages = list(dict.fromkeys(structure.stages.values()))
    assert stages == ["8x8", "4x4", "2x2"]
    path = Exemplars(beta={"8x8": 0.6, "4x4": 0.6, "2x2": 0.9}).path(context)
    wanted = [
        int((digits_bench.evidence.exemplar_betas(g) >= (0.9 if structure.stages[g.name] == "2x2" else 0.6)).sum())
        for g in structure.groups
    ]
    # one unit more or less in all, where the strength falls between two of them
    passed = [path(s).tolist() for s in np.linspace(0, 4, 4001)]
    assert min(np.abs(np.array(kept) - wanted).sum() for kept in passed) <= 1
    even = Exemplars(beta={"*": 0.3}).path(context)
    assert all((even(s) == Exemplars().path(context)(s)).all() for s in (0.3, 1.0, 2.0))


def test_amounts_are_the_numbers_of_exemplars_whatever_the_criterion(digits_bench: Bench) -> None:
    """Three clusters of filters against filters without likeness: the first layer gives all that it can first."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 10))
    centres = torch.eye(3, 64).repeat_interleave(4, dim=0)
    with torch.no_grad():
        model[1].weight.copy_(centres + 0.01 * torch.randn(12, 64, generator=generator))
        model[3].weight.copy_(torch.eye(12) + 0.1 * torch.randn(12, 12, generator=generator))
    bench = Bench(make_base(model, digits_bench.data.example_inputs), digits_bench.data, digits_bench.task)
    structure = bench.base.structure
    scores = {g.name: torch.rand(g.size, generator=generator) for g in structure.groups}
    path = Exemplars().path(replace(AllocationContext.of(scores, structure), evidence=bench.evidence))
    counts = np.array([path(s) for s in np.linspace(0, 2, 60)])
    first_is_at_three = counts[np.flatnonzero(counts[:, 0] <= 3)[0]]
    assert first_is_at_three[0] == 3
    found = exemplars(model[1].weight.detach().double().numpy(), 0.5)
    assert found is not None
    assert len(found) == 3
    assert first_is_at_three[1] >= 11
