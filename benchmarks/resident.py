"""The memory that tracing a model takes: the most that the process holds, as the system counts it (Linux only)."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.graph import trace

_PROCESS = Path("/proc/self")


def measurable() -> bool:
    """Whether this system tells a process's peak, and lets it begin anew."""
    return (_PROCESS / "clear_refs").exists()


def beyond_forward(model: nn.Module, example: Any, work: Callable[[], object]) -> tuple[float, int]:
    """Return what `work`, which traces the model, holds at most, and the size of the model in bytes.

    Beyond what the process held before, and beyond what one forward pass of the model as it is holds; in sizes of the
    model's parameters and buffers.
    """
    # What the first trace imports and caches is no model's.
    trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), torch.zeros(1, 3, 8, 8))
    size = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    gc.collect()
    with torch.no_grad():
        forward = _peak(lambda: model(example))
    # Both peaks begin with what the process held before, which so cancels out.
    return (_peak(work) - forward) / size, size


def _peak(work: Callable[[], object]) -> int:
    """The most bytes that the process held during the work."""
    (_PROCESS / "clear_refs").write_text("5")
    work()
    status = dict(line.split(":", 1) for line in (_PROCESS / "status").read_text().splitlines())
    return 1024 * int(status["VmHWM"].split()[0])
