"""The memory that tracing a model takes.

Counted twice: what lives in tensors at once, as torch's allocator counts it, and the most that the process holds, as
the system does (Linux only). The latter has in it the Python objects of the graph, which are megabytes for every
model, and what the allocator keeps of memory that was given back to it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd.profiler import profile

from autoprune.graph import trace

_PROCESS = Path("/proc/self")


def measurable() -> bool:
    """Whether this system tells a process's peak, and lets it begin anew."""
    return (_PROCESS / "clear_refs").exists()


def beyond_forward(model: nn.Module, example: Any, work: Callable[[], object]) -> tuple[float, int]:
    """Return what the process holds at most during `work`, which traces the model, and the size of the model in bytes.

    Beyond what the process held before, and beyond what one forward pass of the model as it is holds; in sizes of the
    model's parameters and buffers.
    """
    # What the first trace imports and caches is no model's.
    trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), torch.zeros(1, 3, 8, 8))
    size = size_of(model)
    gc.collect()
    with torch.no_grad():
        forward = _peak(lambda: model(example))
    # Both peaks begin with what the process held before, which so cancels out.
    return (_peak(work) - forward) / size, size


def tensors_beyond_forward(model: nn.Module, example: Any, work: Callable[[], object]) -> tuple[float, float]:
    """Return the same of tensors only, and what one forward pass holds; both in sizes of the model."""
    size = size_of(model)
    with torch.no_grad():
        forward = _peak_of_tensors(lambda: model(example))
    return (_peak_of_tensors(work) - forward) / size, forward / size


def size_of(model: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def _peak_of_tensors(work: Callable[[], object]) -> int:
    """The most bytes of tensors that live at once beyond those before."""
    with profile(profile_memory=True) as recorded:
        work()
    most = now = 0
    memory = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(memory, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def _peak(work: Callable[[], object]) -> int:
    """The most bytes that the process held during the work."""
    (_PROCESS / "clear_refs").write_text("5")
    work()
    status = dict(line.split(":", 1) for line in (_PROCESS / "status").read_text().splitlines())
    return 1024 * int(status["VmHWM"].split()[0])
