"""What every sparsity method owes, found by walking the room."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import nn

from autoprune import masks, rooms
from autoprune.masks import Hold
from autoprune.sparsity import Sparsified, Sparsity
from autoprune.tasks import evaluate
from autoprune.training import train
from autoprune.training_settings import TrainingSettings

from .conftest import MakeContext, network

NAMES = rooms.names("sparsity")
QUICK: dict[str, Any] = {
    "epochs": 0.5,
    "epochs_between": 0.5,
    "warmup_epochs": 0.5,
    "interval": 2,
    "rounds": 2,
    "batch_size": 16,
}
"""Values for whichever of these hyperparameters a method has."""


def sparsity(name: str, **changes: Any) -> Sparsity:
    known = rooms.build("sparsity", name).config()
    quick = {key: value for key, value in (QUICK | changes).items() if key in known}
    method = rooms.build("sparsity", {"name": name} | quick)
    assert isinstance(method, Sparsity)
    return method


def zeros_are_masked(model: nn.Module, found: masks.Masks) -> bool:
    state = dict(model.named_parameters())
    return all(not bool(state[name].detach()[~mask].any()) for name, mask in found.items())


def weights_of(found: Sparsified, model: nn.Module) -> masks.Masks:
    return {name: mask for name, mask in found.masks.items() if name in masks.prunable(model)}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_what_is_masked_is_zero_and_as_much_as_was_asked_for(
    name: str, share: float, make_context: MakeContext
) -> None:
    model = network()
    found = sparsity(name, sparsity=share).sparsify(model, make_context())
    masked = weights_of(found, model)
    assert zeros_are_masked(model, found.masks)
    assert not any(m.training for m in model.modules())
    assert all(bool(mask.any()) for mask in masked.values())
    # whole kernels of nine weights may overshoot; rounding down in every layer leaves some weights more
    slack = 0.05 if name == "nn_relief" else 0.0
    removed = 1 - masks.count(masked) / masks.size(masked)
    assert share - 3 / masks.size(masked) <= removed <= share + slack + 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_everything_and_no_global_randomness_is_touched(name: str, make_context: MakeContext) -> None:
    models = [network(), network(), network()]
    found = []
    for stray, (model, seed) in enumerate(zip(models, (1, 1, 2), strict=True)):
        torch.manual_seed(stray)
        state = torch.get_rng_state()
        found.append(sparsity(name, sparsity=0.8).sparsify(model, make_context(seed=seed)))
        assert torch.equal(torch.get_rng_state(), state)
    same, other = ([torch.equal(a, b) for a, b in zip(*pair, strict=True)] for pair in (
        (found[0].masks.values(), found[1].masks.values()), (found[0].masks.values(), found[2].masks.values())
    ))  # fmt: skip
    assert all(same)
    weights = zip(models[0].parameters(), models[1].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)
    assert name == "magnitude" or not all(other)


@pytest.mark.parametrize("name", NAMES)
def test_training_afterwards_keeps_exactly_as_many_zeros(name: str, make_context: MakeContext) -> None:
    model, context, method = network(), make_context(), sparsity(name, sparsity=0.8)
    found = method.sparsify(model, context)
    hook = method.hold(found.masks, seed=3)
    before = {n: int(m.sum()) for n, m in found.masks.items()}
    weights = copy.deepcopy(list(model.parameters()))
    context.train(model, 2.0, hook)
    assert {n: int(m.sum()) for n, m in hook.masks.items()} == before
    assert zeros_are_masked(model, hook.masks)
    assert not all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    if name != "rigl":
        assert all(torch.equal(hook.masks[n], mask) for n, mask in found.masks.items())


class Watching:
    """Trains as a context does, and looks at masks, weights and momentum after every step."""

    def __init__(self, train: Any) -> None:
        self._train = train
        self.trainings: list[list[masks.Masks]] = []
        self.all_zero = True

    def __call__(self, model: nn.Module, epochs: float, hook: Hold, *purpose: str | int) -> None:
        seen: list[masks.Masks] = []
        self.trainings.append(seen)
        plain = hook.after_step

        def after_step(step: int) -> None:
            plain(step)
            seen.append({name: mask.clone() for name, mask in hook.masks.items()})
            for name, mask in hook.masks.items():
                state = hook._optimizer.state.get(hook.weights[name], {})  # type: ignore[union-attr]
                for value in (hook.weights[name].detach(), state.get("momentum_buffer")):
                    self.all_zero &= value is None or not bool(value[~mask].any())

        hook.after_step = after_step  # type: ignore[method-assign]
        self._train(model, epochs, hook, *purpose)


RETURNING = ("rigl", "scl")  # whose papers let weights come back


@pytest.mark.parametrize("name", NAMES)
def test_at_every_step_masked_weights_and_their_momentum_are_zero_and_stay_so(
    name: str, make_context: MakeContext
) -> None:
    model, context, method = network(), make_context(), sparsity(name, sparsity=0.8, epochs=2)
    watching = Watching(context.train)
    found = method.sparsify(model, dataclasses.replace(context, train=watching))
    inside = len(watching.trainings)
    watching(model, 2.0, method.hold(found.masks, seed=3))
    assert watching.all_zero
    assert len(watching.trainings[-1]) == 16
    held = masks.count(found.masks)
    assert all(masks.count(step) == held for step in watching.trainings[-1])
    for number, steps in enumerate(watching.trainings):
        if name in RETURNING and (number < inside or name == "rigl"):
            continue
        for earlier, later in itertools.pairwise(steps):
            assert not any(bool((later[n] & ~earlier[n]).any()) for n in later)


PATTERNED = [name for name in NAMES if "pattern" in rooms.build("sparsity", name).config()]


@pytest.mark.parametrize("name", PATTERNED)
@pytest.mark.parametrize(("pattern", "n", "m"), [("2_of_4", 2, 4), ("1_of_4", 1, 4), ("4_of_8", 4, 8)])
def test_every_score_can_keep_to_a_pattern(name: str, pattern: str, n: int, m: int, make_context: MakeContext) -> None:
    model, ends = network(), {"ends": "sparse"}
    method = sparsity(name, sparsity=1 - n / m, pattern=pattern, **ends)
    found = method.sparsify(model, make_context())
    fitting = {k: mask for k, mask in found.masks.items() if mask.shape[1] % m == 0}
    assert set(found.masks) - set(fitting) == ({"0.weight"} if m == 8 else set())
    for mask in fitting.values():
        assert set(mask.movedim(1, -1).reshape(-1, m).sum(dim=1).tolist()) == {n}
    make_context().train(model, 1.0, method.hold(found.masks, seed=0))
    assert zeros_are_masked(model, found.masks)


def test_patterns_are_for_the_methods_that_rank_weights() -> None:
    assert {"magnitude", "snip", "han_2015", "drive", "grow_and_prune"} <= set(PATTERNED)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_to_remove_removes_nothing(name: str, make_context: MakeContext) -> None:
    model = network()
    masked = weights_of(sparsity(name, sparsity=0.0).sparsify(model, make_context()), model)
    assert masks.count(masked) == masks.size(masked)


@pytest.mark.parametrize("name", NAMES)
def test_masks_are_found_in_mixed_precision_and_channels_last_too(name: str, make_context: MakeContext) -> None:
    model = network().to(memory_format=torch.channels_last)
    context = make_context(mixed_precision=True)
    found = sparsity(name, sparsity=0.8).sparsify(model, context)
    assert zeros_are_masked(model, found.masks)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", NAMES)
def test_a_sparse_network_still_learns(name: str, make_context: MakeContext) -> None:
    model, context, method = network(), make_context(), sparsity(name, sparsity=0.6, epochs=4)
    context.train(model, 5.0, Hold(masks.full(model)))
    found = method.sparsify(model, context)
    settings, hook = TrainingSettings(batch_size=8, lr=0.05), method.hold(found.masks, 0)
    train(model, context.data.train, settings, task=context.task, samples=64 * 25, seed=0, hook=hook)
    assert evaluate(model, context.data.train, context.task).accuracy > 0.8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_work_happens_on_the_device_asked_for(name: str, make_context: MakeContext) -> None:
    import dataclasses

    model, device = network(), torch.device("cuda")
    context = dataclasses.replace(make_context(device=device), device=device)
    found = sparsity(name, sparsity=0.8).sparsify(model, context)
    assert {v.device.type for v in (*model.parameters(), *found.masks.values())} == {"cuda"}
    context.train(model, 1.0, sparsity(name).hold(found.masks, 0))
    assert zeros_are_masked(model, found.masks) or name == "rigl"
