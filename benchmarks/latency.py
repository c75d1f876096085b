"""Targets of latency: what the table of layer times predicts, and what the cut model takes, timed in turns.

    python benchmarks/latency.py [--channels-last]

Uniform recipes, random weights, one image, one thread, eager PyTorch. Prints a markdown table. Times mean something
on an idle machine only.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torchvision
from torch import nn

from autoprune import machine, threads
from autoprune.allocation import AllocationContext
from autoprune.allocation.uniform import Uniform
from autoprune.cost import latencies_ms
from autoprune.cost.layer_times import time_layers
from autoprune.graph import trace
from autoprune.models.resnet_cifar import resnet20_cifar
from autoprune.recipe import Target
from autoprune.repair import Budget, repair

TARGETS = (0.8, 0.6, 0.4)
MODELS = {"resnet18": 224, "mobilenet_v2": 224, "resnet20_cifar": 32}
_SERIES = 3


def built(name: str) -> nn.Module:
    """Return a model with random weights, in eval mode."""
    torch.manual_seed(0)
    model = resnet20_cifar() if name == "resnet20_cifar" else torchvision.models.get_model(name)
    return model.eval()


def rows(name: str, channels_last: bool) -> list[str]:
    """Return a row of the table for every target."""
    laid_out = torch.channels_last if channels_last else torch.contiguous_format
    model, image = built(name).to(memory_format=laid_out), torch.randn(1, 3, MODELS[name], MODELS[name])
    structure = trace(model, image)
    began = time.perf_counter()
    times = time_layers(model, structure, image, channels_last=channels_last)
    seconds = time.perf_counter() - began
    path = Uniform().path(AllocationContext.of({g.name: torch.ones(g.size) for g in structure.groups}, structure))
    found = []
    for wanted in TARGETS:
        target = Target(flops_fraction=None, latency_fraction=wanted)
        budget = Budget(flops=structure.flops(), params=structure.params(), target=target, latency=times.fraction)
        amounts = repair(structure, budget, path=path)
        keep = {group: list(range(count)) for group, count in amounts.counts.items()}
        cut = structure.cut(model, keep).to(memory_format=laid_out)
        pairs = [latencies_ms((cut, model), image, repeats=30) for _ in range(_SERIES)]
        measured = statistics.median(own / base for own, base in pairs)
        cells: tuple[object, ...] = (
            wanted,
            f"{amounts.latency_fraction:.2f}",
            f"{measured:.2f}",
            f"{amounts.flops_fraction:.2f}",
        )
        found.append(
            f"| {name} | {' | '.join(map(str, cells))} | {times.error:.0%} | {times.base_ms:.1f} | {seconds:.0f} |"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--channels-last", action="store_true")
    channels_last = parser.parse_args().channels_last
    layout = "channels last" if channels_last else "contiguous"
    print(f"{machine.describe()['processor']}, torch {torch.__version__}, {layout}\n")
    print("| model | target | predicted | measured | FLOPs | mean error elsewhere | whole, ms | table, s |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    with threads.limited(1):
        for name in MODELS:
            print("\n".join(rows(name, channels_last)), flush=True)


if __name__ == "__main__":
    main()
