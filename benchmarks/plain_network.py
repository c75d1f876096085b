"""A network that nothing here was tuned on: six convolutions in a row, no residuals, 22 M MACs at 32x32.

    AUTOPRUNE_CIFAR10_JPEG=... python benchmarks/plain_network.py --epochs 8 --out plain.safetensors

trains it on the training part of the study `plain_cifar10.yaml` beside this file, which then takes the weights from
AUTOPRUNE_PLAIN_WEIGHTS.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch
from torch import nn

_WIDTHS = (24, 48, 96)


def build(num_classes: int = 10) -> nn.Module:
    """Return the network: (N, 3, H, W) -> (N, num_classes)."""
    layers: list[nn.Module] = []
    width_in = 3
    for width in _WIDTHS:
        for _ in range(2):
            layers += [nn.Conv2d(width_in, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            width_in = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width_in, num_classes))


def main() -> None:
    from safetensors.torch import save_model

    from autoprune import threads
    from autoprune.data import build_data
    from autoprune.models import TrainSpec, train_base
    from autoprune.study.config import load
    from autoprune.tasks import build_task, evaluate

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=float, default=8.0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    os.environ.setdefault("AUTOPRUNE_PLAIN_WEIGHTS", str(options.out))
    config = load(str(Path(__file__).with_name("plain_cifar10.yaml")), {}).config
    torch.manual_seed(0)
    model, task, data = build(), build_task(config.task), build_data(config.data)
    spec = TrainSpec(epochs=options.epochs, lr=0.1, batch_size=128, weight_decay=5e-4, schedule="cosine")
    began = time.perf_counter()

    def told(done: int, loss: float) -> None:
        if done % 12800 == 0:
            print(done, f"{loss:.3f}", f"{time.perf_counter() - began:.0f} s", flush=True)

    with threads.limited(1):
        train_base(model, data, task, spec, seed=0, progress=told)
        for name in ("validation", "test"):
            print(name, evaluate(model, getattr(data, name), task, 256).accuracy)
    save_model(model, str(options.out))


if __name__ == "__main__":
    main()
