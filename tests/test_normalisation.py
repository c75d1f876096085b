from __future__ import annotations

import math

import pytest
import torch

from autoprune.normalisation import normalise


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("none", [3.0, 0.0, -4.0, 1.0]),
        ("mean", [1.5, 0.0, -2.0, 0.5]),  # mean of absolute scores: 8 / 4
        ("l2", [x / math.sqrt(26) for x in (3.0, 0.0, -4.0, 1.0)]),
        ("max", [0.75, 0.0, -1.0, 0.25]),
        ("standard", [x / math.sqrt(6.5) for x in (3.0, 0.0, -4.0, 1.0)]),  # their mean is zero
    ],
)
def test_by_hand(kind: str, expected: list[float]) -> None:
    scores = {"a": torch.tensor([3.0, 0.0, -4.0, 1.0], dtype=torch.float64)}
    assert normalise(kind, scores)["a"].tolist() == pytest.approx(expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["none", "mean", "l2", "max", "standard"])
def test_all_zero_scores_stay_zero(kind: str) -> None:
    assert normalise(kind, {"a": torch.zeros(3)})["a"].tolist() == [0, 0, 0]  # type: ignore[arg-type]
