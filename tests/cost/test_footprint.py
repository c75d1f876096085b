"""Live tensors counted by hand, and the energy proxy."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from autoprune.cost.footprint import energy_proxy_pj, footprint

IMAGE = torch.zeros(1, 3, 8, 8)


class Chain(nn.Module):
    """Two convolutions that keep the size, 3 to 4 to 2 channels, and what is done with their result."""

    def __init__(self, last: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1), last

    def forward(self, x: Tensor) -> object:
        return self.last(x, self.second(self.first(x)))


@pytest.mark.parametrize(
    ("last", "planes"),
    [
        (lambda x, y: y, 3 + 4),
        # the input is needed until the end
        (lambda x, y: (y, x), 3 + 4 + 2),
        (lambda x, y: torch.cat([x, y], 1), 3 + 2 + 5),
        # in place, or a view: no memory of its own
        (lambda x, y: y.relu_(), 3 + 4),
        (lambda x, y: (y.flatten(1), x), 3 + 4 + 2),
        (lambda x, y: y.chunk(2, 1), 3 + 4),
        (lambda x, y: nn.functional.dropout(y, 0.5, False), 3 + 4),
        (lambda x, y: (torch.cat([y, y, y], 1), y), 2 + 6),
    ],
    ids=["chain", "skip", "cat", "in-place", "view", "items", "dropout", "wide end"],
)
def test_peak_by_hand(last: Callable[[Tensor, Tensor], object], planes: int) -> None:
    assert footprint(Chain(last), IMAGE).peak_bytes() == planes * 64 * 4


def test_what_is_moved_by_hand() -> None:
    found = footprint(Chain(lambda x, y: y), IMAGE)
    assert found.weights == 3 * 4 * 9 + 4 + 4 * 2 + 2
    assert found.activations == (3 + 4 + 2) * 64
    assert found.moved_bytes() == 4 * (found.weights + 2 * found.activations)
    assert found.moved_bytes(8) == found.weights + 2 * found.activations


def test_a_batch_needs_as_many_times_the_activations() -> None:
    one, four = (footprint(Chain(lambda x, y: y), IMAGE.repeat(n, 1, 1, 1)) for n in (1, 4))
    assert four.peak_activations == 4 * one.peak_activations
    assert four.weights == one.weights


def test_the_model_keeps_its_mode() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    footprint(model, IMAGE)
    assert model[1].training
    assert int(model[1].num_batches_tracked) == 0


def test_energy_by_hand() -> None:
    assert energy_proxy_pj(1000, 100, bits=8) == pytest.approx(16_300)
    assert energy_proxy_pj(1000, 400) == pytest.approx(68_600)
