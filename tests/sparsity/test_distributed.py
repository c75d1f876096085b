"""Two replicas with data of their own: gradients are averaged, so that their masks stay the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from autoprune.masks import Masks
from autoprune.sparsity.rigl import Rigl

from .conftest import network

STEPS = 12


def replica(rank: int, folder: str) -> None:
    """Train for some steps with moving masks and note them, and how far weights strayed."""
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = DistributedDataParallel(network().train())
    method = Rigl(sparsity=0.8, interval=2, alpha=0.5, end=0.9)
    hook = method.hold(start(model.module), seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    hook.begin(model, optimizer, STEPS)
    draws = torch.Generator().manual_seed(rank)
    for step in range(STEPS):
        optimizer.zero_grad()
        model(torch.randn(8, 4, 6, 6, generator=draws)).square().mean().backward()
        if not hook.before_step(step):
            optimizer.step()
        hook.after_step(step)
    torch.save({n: (m, hook.weights[n].detach()) for n, m in hook.masks.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def start(model: nn.Module) -> Masks:
    """Return the same masks of every second weight in all replicas."""
    found = {}
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            mask = torch.zeros(weight.numel(), dtype=torch.bool)
            mask[::2] = True
            found[name] = mask.view(weight.shape)
    return found


@pytest.mark.slow
def test_replicas_move_their_masks_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # the replicas import this module by its name
    torch.multiprocessing.spawn(replica, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    moved = start(network())
    for name, (mask, weight) in first.items():
        assert torch.equal(mask, second[name][0])
        torch.testing.assert_close(weight, second[name][1])
        assert not bool(weight[~mask].any())
        assert mask.sum() == moved[name].sum()
    assert any(not torch.equal(mask, moved[name]) for name, (mask, _) in first.items())
