"""Networks drawn from a grammar, each cut at random: always exact, always as dear as predicted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as reproducible
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from autoprune.graph import Structure, trace
from autoprune.graph.bench import Bench
from autoprune.graph.tracer import as_inputs

from .grammar import IMAGE_KINDS, SIDE, TOKEN_KINDS, TokenNetwork, image_network

IMAGE_STEPS = st.lists(st.tuples(st.sampled_from(IMAGE_KINDS), st.integers(2, 6)), max_size=2)
TOKEN_STEPS = st.lists(st.tuples(st.sampled_from(TOKEN_KINDS), st.integers(2, 4), st.booleans()), max_size=1)
HIDDEN = {"mlp", "gated", "swiglu"}

Test = Callable[..., None]


@pytest.fixture(autouse=True)
def _countable() -> Iterator[None]:
    """Without the fused kernel that nn.MultiheadAttention takes where it is left whole: the counter is blind to it."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(enabled)


def keep_at_random(structure: Structure, seed: int, least: int = 1) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return {
        name: np.sort(generator.choice(size, int(generator.integers(min(least, size), size + 1)), replace=False))
        for name, size in zip(structure.names, structure.sizes.tolist(), strict=True)
    }


def check_cut(model: nn.Module, inputs: Tensor, seed: int, least: int = 1) -> Structure:
    """Cut at random and compare with the masked model in float64; returns the structure."""
    structure = trace(model, inputs)
    bench = Bench.build(model, as_inputs(inputs))
    keep = keep_at_random(structure, seed, least)
    small, masked = structure.cut(bench.model, keep), structure.mask(bench.model, keep)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        cut = small(*bench.inputs[0])
    with torch.no_grad():
        full = masked(*bench.inputs[0])
    assert (cut - full).abs().max() <= 1e-9 * full.abs().max()
    assert counter.get_total_flops() == structure.flops(keep)
    assert sum(p.numel() for p in small.parameters()) == structure.params(keep)
    return structure


def examples(index: int, count: int = 3) -> Callable[[Test], Test]:
    """The same few examples in every run, others for every index."""

    def decorate(test: Test) -> Test:
        quick = settings(
            max_examples=count,
            phases=(Phase.generate, Phase.shrink),
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        return reproducible(index)(quick(test))

    return decorate


@pytest.mark.parametrize("index", range(len(IMAGE_KINDS)), ids=IMAGE_KINDS)
def test_random_image_network(index: int) -> None:
    @examples(index)
    @given(before=IMAGE_STEPS, size=st.integers(2, 6), after=IMAGE_STEPS, flat=st.booleans(), seed=st.integers(0, 1000))
    def check(before: list[Any], size: int, after: list[Any], flat: bool, seed: int) -> None:
        steps = [*before, (IMAGE_KINDS[index], size), *after]
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            structure = check_cut(image_network(steps, flat).eval(), torch.zeros(1, 3, SIDE, SIDE), seed)
        assert structure.names
        for item in structure.frozen:
            # The two halves that a channel shuffle interleaves are written into its code.
            shuffled = item.name.endswith(".before") and (item.size, item.operator) == (2, "verification")
            assert shuffled or item.operator in ("output", "unread"), item

    check()


@pytest.mark.parametrize("index", range(len(TOKEN_KINDS)), ids=TOKEN_KINDS)
def test_random_token_network(index: int) -> None:
    @examples(index)
    @given(
        before=TOKEN_STEPS,
        step=st.tuples(st.just(TOKEN_KINDS[index]), st.integers(2, 4), st.booleans()),
        after=TOKEN_STEPS,
        token=st.booleans(),
        normed=st.booleans(),
        seed=st.integers(0, 1000),
    )
    def check(before: list[Any], step: Any, after: list[Any], token: bool, normed: bool, seed: int) -> None:
        steps = [*before, step, *after]
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            # With a single unit einsum multiplies where it had matrix products, which the counter does not count.
            structure = check_cut(TokenNetwork(steps, token, normed).eval(), torch.zeros(1, 3, 4, 4), seed, least=2)
        kinds = {kind for kind, _, _ in steps}
        # A layer normalisation keeps the embedding whole, and so does code that takes its sizes from it.
        whole = {("patch", "aten.layer_norm.default" if normed else "verification")}
        found = {(item.name, item.operator) for item in structure.frozen} - {("head", "output")}
        assert found == (whole if normed or "constant" in kinds else set())
        attends, hides = kinds - HIDDEN, kinds & HIDDEN
        assert {"head", "head_dim"} & set(structure.kinds) == ({"head", "head_dim"} if attends else set())
        assert ("channel" in structure.kinds) == (not found or bool(hides))

    check()


NARROW = [
    ([("residual", 6), ("transposed", 3), ("channel_shuffle", 2), ("channel_shuffle", 4)], True, 103626),
    ([("depthwise", 3), ("pixel_shuffle", 3), ("conv", 3), ("channel_shuffle", 6)], True, 644675),
    ([("pool", 6), ("dense", 4), ("branches", 6), ("channel_shuffle", 4)], False, 284600),
    ([("group_norm", 5), ("channel_shuffle", 5), ("pixel_shuffle", 3), ("channel_shuffle", 4)], False, 100502),
]


@pytest.mark.parametrize(("steps", "flat", "seed"), NARROW)
def test_halves_of_a_narrow_channel_shuffle(steps: list[tuple[str, int]], flat: bool, seed: int) -> None:
    """The code takes the length of a part from its input: with one half gone it interleaves what is left of the other.

    With one channel in either half, or with dead ones, both orders are the same.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        check_cut(image_network(steps, flat).eval(), torch.zeros(1, 3, SIDE, SIDE), seed)
