"""Times of the structure engine: trace and verify, one cut against copy.deepcopy, the cost of one candidate.

    python benchmarks/structure.py [--repeats 20] [--threads 1] [--image-size 224]

Prints one line for each model, with hardware, versions and the number of repeats. Median over repeats.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn

from autoprune.graph import Structure, trace
from autoprune.models import build_model
from autoprune.specs import ModelSpec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--image-size", type=int, default=224, help="of the ImageNet models")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"{_processor()}, {options.threads} thread(s), Python {platform.python_version()}, "
        f"torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}, n = {options.repeats}, keep_fraction 0.5 in every group"
    )
    print(f"{'model':16} trace+verify s  deepcopy ms   cut ms  ratio  FLOPs us  groups")
    for name, size in (
        ("resnet18", options.image_size),
        ("resnet50", options.image_size),
        ("resnet56_cifar", 32),
    ):
        _row(name, build_model(ModelSpec(name=name)), torch.zeros(1, 3, size, size), options.repeats)


def _row(name: str, model: nn.Module, example: torch.Tensor, repeats: int) -> None:
    start = time.perf_counter()
    structure = trace(model, example)
    traced_s = time.perf_counter() - start
    keep = _spread(structure)
    copy_s, cut_s = _medians((lambda: copy.deepcopy(model), lambda: structure.cut(model, keep)), repeats)
    counts = structure.sizes // 2
    (flops_s,) = _medians((lambda: structure.total_flops(counts),), 100 * repeats)
    print(
        f"{name:16} {traced_s:14.2f} {1e3 * copy_s:12.1f} {1e3 * cut_s:8.1f} {cut_s / copy_s:6.2f} "
        f"{1e6 * flops_s:9.1f} {len(structure.groups):7}"
    )


def _spread(structure: Structure) -> dict[str, np.ndarray]:
    """Every second unit: not the first half, which would be one contiguous copy."""
    return {name: np.arange(0, size, 2) for name, size in zip(structure.names, structure.group_sizes, strict=True)}


def _medians(works: tuple[Callable[[], object], ...], repeats: int) -> list[float]:
    """Median seconds of each, taken in turns so that a slow moment of the machine hits all of them alike."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(repeats + 2):
        for taken, work in zip(times, works, strict=True):
            start = time.perf_counter()
            work()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken[2:]) for taken in times]


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
