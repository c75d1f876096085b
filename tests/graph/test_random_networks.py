"""Networks drawn from a grammar, each cut at random: always exact, always as dear as predicted."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from autoprune.graph import trace
from autoprune.graph.bench import Bench
from autoprune.graph.tracer import as_inputs

KINDS = ("conv", "residual", "widen", "dense", "branches", "depthwise", "grouped", "gate", "pool")
STEPS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(2, 6)), min_size=1, max_size=5)


class Step(nn.Module):
    """One production of the grammar: (N, width_in, H, W) -> (N, width, H, W)."""

    def __init__(self, kind: str, width_in: int, size: int) -> None:
        super().__init__()
        self.kind = kind
        groups = {"depthwise": width_in, "grouped": 2}.get(kind, 1)
        self.width = {
            "conv": size,
            "widen": width_in + size,
            "dense": width_in + size,
            "branches": 2 * size,
            "depthwise": width_in * (1 + size % 2),
            "grouped": 2 * size,
        }.get(kind, width_in)
        out = {"dense": size, "branches": size}.get(kind, self.width)
        if kind == "grouped" and width_in % 2:
            groups = 1
        self.main = nn.Conv2d(width_in, out, 3, padding=1, groups=groups, bias=size % 2 == 0)
        self.norm = nn.BatchNorm2d(out, affine=size % 3 > 0)
        self.pad_before, self.pad_after = size // 2, size - size // 2
        self.side = nn.Conv2d(width_in, size if kind == "branches" else width_in, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm(self.main(x)))
        if self.kind == "residual":
            return x + y
        if self.kind == "widen":
            return y + functional.pad(x, (0, 0, 0, 0, self.pad_before, self.pad_after))
        if self.kind == "dense":
            return torch.cat([x, y], dim=1)
        if self.kind == "branches":
            return torch.cat([y, functional.gelu(self.side(x))], dim=1)
        if self.kind == "gate":
            return y * torch.sigmoid(self.side(x.mean((2, 3), keepdim=True)))
        if self.kind == "pool":
            return functional.max_pool2d(y, 3, 1, 1)
        return y


def build(steps: list[tuple[str, int]], flat: bool) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 4, 3, padding=1)]
    width = 4
    for kind, size in steps:
        step = Step(kind, width, size)
        layers.append(step)
        width = step.width
    pool = nn.Identity() if flat else nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*layers, pool, nn.Flatten(), nn.Linear(width * (25 if flat else 1), 3))


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(steps=STEPS, flat=st.booleans(), seed=st.integers(0, 1000))
def test_random_network(steps: list[tuple[str, int]], flat: bool, seed: int) -> None:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model, example = build(steps, flat), torch.zeros(1, 3, 5, 5)
        structure = trace(model, example)
        bench = Bench.build(model, as_inputs(example))
    assert {item.operator for item in structure.frozen} <= {"output", "unread"}
    generator = np.random.default_rng(seed)
    keep: dict[str, Any] = {
        name: np.sort(generator.choice(size, int(generator.integers(1, size + 1)), replace=False))
        for name, size in zip(structure.names, structure.sizes.tolist(), strict=True)
    }
    small, masked = structure.cut(bench.model, keep), structure.mask(bench.model, keep)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        cut = small(*bench.inputs[0])
    with torch.no_grad():
        full = masked(*bench.inputs[0])
    assert (cut - full).abs().max() <= 1e-9 * full.abs().max()
    assert counter.get_total_flops() == structure.flops(keep)
    assert sum(p.numel() for p in small.parameters()) == structure.params(keep)
