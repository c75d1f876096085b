"""A structure on disk serves its own model only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from autoprune.errors import WrongArtefact
from autoprune.graph import cached_trace


def network(width: int, slope: float = 0.0) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.LeakyReLU(slope), nn.Linear(width, 3))


def test_the_file_is_used_for_the_same_model_with_other_weights(tmp_path: Path) -> None:
    path, example = tmp_path / "plans" / "structure.json", torch.zeros(1, 4)
    first = cached_trace(path, network(6), example)
    again = cached_trace(path, network(6), example)
    assert first.to_json() == again.to_json()
    assert again.verified == "float64"


@pytest.mark.parametrize(
    ("other", "options", "message"),
    [
        (network(7), {}, r"0.weight has shape \(6, 4\) there, \(7, 4\) here"),
        (network(6, slope=0.1), {}, "same tensors, used otherwise"),
        (network(6), {"round_to": 2}, "other options"),
    ],
)
def test_the_file_of_another_model_is_refused(
    tmp_path: Path, other: nn.Module, options: dict[str, int], message: str
) -> None:
    path, example = tmp_path / "structure.json", torch.zeros(1, 4)
    cached_trace(path, network(6), example)
    with pytest.raises(WrongArtefact, match=message):
        cached_trace(path, other, example, **options)  # type: ignore[arg-type]
