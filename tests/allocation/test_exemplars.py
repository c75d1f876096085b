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
