"""Random residual networks, shortened and cut at random."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from autoprune.graph import trace
from autoprune.graph.bench import Bench
from autoprune.graph.tracer import as_inputs

from .blocknets import (
    counted,
    draw,
    image,
    names,
    parameters,
)
from .networks import head

STEPS = st.lists(
    st.tuples(st.sampled_from(["post", "pre", "scaled", "widen", "plain", "gate"]), st.integers(2, 5)),
    min_size=1,
    max_size=6,
)


class Unit(nn.Module):
    def __init__(self, kind: str, width: int, inner: int) -> None:
        super().__init__()
        self.kind, self.width = kind, width + inner if kind == "widen" else width
        self.branch = nn.Sequential(
            nn.Conv2d(width, inner, 3, 1, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, self.width, 3, 1, 1),
        )
        self.side = nn.Conv2d(width, self.width, 1)
        self.gamma = nn.Parameter(torch.randn(self.width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        if self.kind == "post":
            return functional.relu(x + y)
        if self.kind == "pre":
            return y + x
        if self.kind == "scaled":
            return x + self.gamma * functional.dropout(y, 0.3, self.training)
        if self.kind == "gate":
            return x + y * torch.sigmoid(self.side(x))
        return functional.relu(y + self.side(x))


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(steps=STEPS, seed=st.integers(0, 1000))
def test_random_blocks_and_channels(steps: list[tuple[str, int]], seed: int) -> None:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        units: list[Unit] = []
        for kind, inner in steps:
            units.append(Unit(kind, units[-1].width if units else 4, inner))
        model: nn.Module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), *units, head(units[-1].width)).eval()
        structure = trace(model, image(5))
        bench = Bench.build(model, as_inputs(image(5)))
        never_negative, expected = True, []
        for i, (kind, _) in enumerate(steps):
            if kind in ("pre", "scaled", "gate") or (kind == "post" and never_negative):
                expected.append(str(i + 2))
            never_negative = kind in ("post", "widen", "plain")
        assert names(structure) == expected
        skip, keep = draw(structure, seed)
        less, small = structure.without_blocks(skip), structure.cut(bench.model, keep, skip)
        cut = small(*bench.inputs[0])
        # the full model whose skipped branches give zeros, and whose removed units are zero
        full = structure.mask(bench.model, keep)
        for name in skip:
            full.get_submodule(name).branch.register_forward_hook(lambda *call: torch.zeros_like(call[2]))
        zeroed = full(*bench.inputs[0])
    assert (cut - zeroed).abs().max() <= 1e-9 * zeroed.abs().max()
    assert counted(small, bench.inputs[0][0]) == less.flops(keep)
    assert parameters(small) == less.params(keep)
