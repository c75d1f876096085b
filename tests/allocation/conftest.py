"""Contexts for allocations."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch

from autoprune.allocation import AllocationContext
from autoprune.evidence import ModelEvidence
from autoprune.probe import Probe
from autoprune.recovery.bn_reestimation import BnReestimation
from autoprune.trial import Bench

Within = Callable[[Mapping[str, torch.Tensor]], AllocationContext]


@pytest.fixture
def digits_probe(digits_bench: Bench) -> Probe:
    """Measures the digits network cut by the lowest index first, with batch norms estimated anew."""
    return Probe(
        model=digits_bench.model,
        structure=digits_bench.base.structure,
        evidence=digits_bench.evidence,
        source=digits_bench.source,
        choose=lambda counts: {name: list(range(count)) for name, count in counts.items()},
        corrections=[BnReestimation()],
        context=digits_bench.recovery_context(0),
        batch_size=256,
    )


@pytest.fixture
def within_digits(digits_bench: Bench, digits_probe: Probe) -> Within:
    """Return the context of the digits network for given scores, with everything that an allocation may ask for."""

    def of(scores: Mapping[str, torch.Tensor]) -> AllocationContext:
        structure, evidence = digits_bench.base.structure, digits_bench.evidence
        assert isinstance(evidence, ModelEvidence)
        return AllocationContext(
            scores=scores,
            structure=structure,
            full_sizes={g.name: g.size for g in structure.groups},
            cost=structure.total_flops,
            budget=structure.flops() / 2,
            evidence=evidence,
            measure=digits_probe,
        )

    return of
