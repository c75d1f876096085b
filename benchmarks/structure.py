"""Times and memory of the structure engine: trace and verify, one cut against copy.deepcopy, one candidate's cost.

    python benchmarks/structure.py [--models resnet18 vit_b_16] [--repeats 20] [--threads 1] [--image-size 224]

Prints one line for each model, with hardware, versions and the number of repeats. Median over repeats. Memory is
measured in a process of its own (Linux only): the most that tracing and verifying holds beyond the loaded model, less
what one forward pass holds, as a multiple of the model's parameters and buffers.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from resident import beyond_forward, measurable
from torch import nn

from autoprune.graph import Structure, trace
from autoprune.models import build_model
from autoprune.specs import ModelSpec

_MODELS = ("resnet18", "resnet50", "resnet56_cifar", "vit_b_16", "convnext_tiny", "vgg16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=_MODELS, help=f"by default {' '.join(_MODELS)}")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--image-size", type=int, default=224, help="of the ImageNet models")
    parser.add_argument("--memory-of", metavar="MODEL", help="print only this model's memory, measured in this process")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of is not None:
        model, example = _model(options.memory_of, options.image_size)
        print(f"{beyond_forward(model, example, lambda: trace(model, example))[0]:.2f}")
        return
    print(
        f"{_processor()}, {options.threads} thread(s), Python {platform.python_version()}, "
        f"torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}, n = {options.repeats}, keep_fraction 0.5 in every group"
    )
    print(f"{'model':16} trace+verify s  memory x  deepcopy ms   cut ms  ratio  FLOPs us  groups")
    for name in options.models:
        model, example = _model(name, options.image_size)
        _row(name, model, example, options.repeats, _memory_in_a_process(name, options))


def _model(name: str, image_size: int) -> tuple[nn.Module, torch.Tensor]:
    size = 32 if name.endswith("_cifar") else image_size
    return build_model(ModelSpec(name=name)), torch.zeros(1, 3, size, size)


def _row(name: str, model: nn.Module, example: torch.Tensor, repeats: int, memory: str) -> None:
    start = time.perf_counter()
    structure = trace(model, example)
    traced_s = time.perf_counter() - start
    keep = _spread(structure)
    copy_s, cut_s = _medians((lambda: copy.deepcopy(model), lambda: structure.cut(model, keep)), repeats)
    counts = structure.sizes // 2
    (flops_s,) = _medians((lambda: structure.total_flops(counts),), 100 * repeats)
    print(
        f"{name:16} {traced_s:14.2f} {memory:>9} {1e3 * copy_s:12.1f} {1e3 * cut_s:8.1f} {cut_s / copy_s:6.2f} "
        f"{1e6 * flops_s:9.1f} {len(structure.groups):7}"
    )


def _memory_in_a_process(name: str, options: argparse.Namespace) -> str:
    if not measurable():
        return "-"
    own = [sys.executable, __file__, "--memory-of", name, "--image-size", str(options.image_size)]
    done = subprocess.run([*own, "--threads", str(options.threads)], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


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
