"""What tracing and verifying holds, counted by torch's allocator: bytes of tensors, not of the process."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.profiler import profile

from autoprune.graph import Structure, trace


class Branch(nn.Module):
    """A residual block whose weights are large and whose activations are small."""

    def __init__(self, width: int, norm: bool) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.norm = nn.BatchNorm1d(4 * width) if norm else nn.Identity()
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.norm(self.up(x))))


class Stubborn(Branch):
    """A block whose hidden width stands in its code, so that culprits are searched."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.up(x))
        return x + self.down(hidden * torch.ones(1, 4 * x.shape[1]))


def network(block: type[Branch], norm: bool) -> nn.Sequential:
    width = 128
    return nn.Sequential(nn.Linear(8, width), *(block(width, norm) for _ in range(6)), nn.Linear(width, 4))


def peak_bytes(work: Callable[[], object]) -> int:
    """The most bytes of tensors that live at once beyond those before."""
    with profile(profile_memory=True) as recorded:
        work()
    most = now = 0
    assert recorded.kineto_results is not None
    memory = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(memory, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def peaks(model: nn.Module, example: Tensor) -> tuple[Structure, float, float]:
    """Return the structure, and what tracing and one forward pass hold at most, in sizes of the model."""
    size = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    found: list[Structure] = []

    def run() -> None:
        with torch.no_grad():
            model(example)

    forward = peak_bytes(run)
    traced = peak_bytes(lambda: found.append(trace(model, example)))
    return found[0], traced / size, forward / size


@pytest.mark.parametrize("block", [Branch, Stubborn])
@pytest.mark.parametrize("norm", [False, True])
def test_at_most_three_times_the_model(block: type[Branch], norm: bool) -> None:
    torch.manual_seed(0)
    model, example = network(block, norm).eval(), torch.randn(1, 8)
    structure, traced, forward = peaks(model, example)
    assert traced <= 3 + forward
    # All that takes memory has happened: the proof of blocks, and of groups with and without a search.
    assert len(structure.blocks) == 6
    assert structure.verified == "float64"
    assert ("1.up" in structure.names) == (block is Branch)


class Seeing(nn.Module):
    """A residual block over images, whose activations take more than half as much as all weights do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.norm, self.down = (
            nn.Conv2d(width, 4 * width, 1),
            nn.BatchNorm2d(4 * width),
            nn.Conv2d(4 * width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.norm(self.up(x))))


def test_training_passes_take_no_more_than_the_comparison() -> None:
    torch.manual_seed(0)
    # A stage that is no block, and blocks: the former trains in the proof of the latter.
    stage = [nn.Conv2d(3, 512, 1), nn.BatchNorm2d(512), nn.ReLU(), nn.Conv2d(512, 128, 1)]
    model = nn.Sequential(*stage, *(Seeing(128) for _ in range(5)), nn.Conv2d(128, 4, 1)).eval()
    example = torch.randn(1, 3, 20, 20)
    structure, traced, forward = peaks(model, example)
    assert forward > 0.5
    assert traced <= 3 + forward
    assert len(structure.blocks) == 5


class Renormed(nn.Module):
    """torch writes into the weight of this embedding in every forward pass, training or not."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16, max_norm=0.5)
        self.branch = Branch(16, norm=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(self.embed(x))


def test_a_model_that_writes_into_its_weights_is_not_changed() -> None:
    torch.manual_seed(0)
    model = Renormed().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert float(before["embed.weight"].norm(dim=1).max()) > 0.5
    assert "branch.up" in trace(model, torch.arange(5)).names
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_peak_is_what_lives_at_once() -> None:
    def work() -> None:
        first = torch.zeros(1000)
        del first
        second, third = torch.zeros(500), torch.zeros(100)
        del second, third

    assert peak_bytes(work) == 4000
