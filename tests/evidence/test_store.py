from __future__ import annotations

import pytest
import torch
from torch import nn

from autoprune.data import Data, TensorSplit
from autoprune.evidence import Evidence, ModelEvidence, Source
from autoprune.graph import trace
from autoprune.tasks import build_task


def test_what_does_not_apply_to_a_model_does_not_keep_the_rest_from_being_gathered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("autoprune.evidence.unit_curvature.MOST_UNITS", 4)
    model, inputs = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 3)).eval(), torch.randn(8, 3)
    split = TensorSplit(inputs, torch.arange(8) % 3)
    source = Source(
        data=Data(split, split, None, "tiny", 3, "tiny"),
        task=build_task(),
        batches=1,
        batch_size=8,
        device=torch.device("cpu"),
    )
    evidence = ModelEvidence(model, trace(model, inputs[:2]), source, seed=0)
    kinds = frozenset({Evidence.WEIGHTS, Evidence.GAUSS_NEWTON, Evidence.GATE_GRADIENTS, Evidence.GROUP_SENSITIVITIES})
    missing = evidence.prepare(kinds)
    assert missing.keys() == {Evidence.GAUSS_NEWTON}
    assert "5 units is too large" in missing[Evidence.GAUSS_NEWTON]
    assert set(evidence._gathered) == {Evidence.GATE_GRADIENTS}
