"""The declared effort of every kind of evidence against the FLOPs that gathering really takes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from autoprune.evidence import Evidence, ModelEvidence, gates
from autoprune.evidence.effort import EFFORT, Effort, effort_of
from autoprune.evidence.kinds import OF_A_RECIPE
from autoprune.trial import Bench


def test_every_kind_declares_its_effort() -> None:
    assert set(EFFORT) == set(Evidence) - OF_A_RECIPE
    assert str(EFFORT[Evidence.GATE_CURVATURE]) == "3 + 6 per unit"
    assert str(EFFORT[Evidence.WEIGHTS]) == "0"
    assert effort_of([Evidence.GATE_GRADIENTS, Evidence.GAUSS_NEWTON]) == Effort(passes=6, per_output=2)
    assert effort_of([Evidence.GAUSS_NEWTON]).of(units=7, outputs=10) == 23


@pytest.mark.parametrize("kind", sorted(set(EFFORT) - {Evidence.WEIGHTS}))
def test_the_declared_effort_is_what_is_computed(
    kind: Evidence, digits_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(*_: Any, **__: Any) -> Any:
        def refuse(*_: Any) -> Any:
            raise RuntimeError("vmap is left out: FLOPs of batched convolutions are not counted as they are computed")

        return refuse

    monkeypatch.setattr(gates, "vmap", unavailable)
    # 20 batches of 2: what is looked at once per gathering, not per sample, hardly counts
    few = {Evidence.GATE_CURVATURE: 1, Evidence.HESSIAN_TRACES: 1}
    source = dataclasses.replace(digits_bench.source, batches=few.get(kind, 20), batch_size=2)
    structure = digits_bench.base.structure
    evidence = ModelEvidence(digits_bench.model, structure, source, seed=0)
    with FlopCounterMode(display=False) as counter:
        evidence.gather(kind)
    measured = counter.get_total_flops() / digits_bench.base.flops / source.samples
    declared = EFFORT[kind].of(units=int(structure.sizes.sum()), outputs=10)
    assert measured == pytest.approx(declared, rel=0.2, abs=0.1)
    assert torch.is_grad_enabled()
