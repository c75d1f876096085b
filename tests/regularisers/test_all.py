"""What every regulariser owes, found by walking the room."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch

from autoprune import rooms
from autoprune.regularisers import Regulariser

NAMES = rooms.names("regularisers")


def quick(name: str) -> Regulariser:
    """Return the method with little training: a 64-sample batch and, where it has that, an eighth of an epoch."""
    known = rooms.method_class("regularisers", name).__dataclass_fields__  # type: ignore[attr-defined]
    return cast(
        Regulariser, rooms.build("regularisers", {"name": name} | {k: v for k, v in QUICK.items() if k in known})
    )


QUICK = {"epochs": 0.5, "batch_size": 64, "growth": 0.5, "pick_growth": 0.005, "every": 2, "stabilise": 4}


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_shapes_the_same_and_touches_no_global_randomness(
    name: str, network: Any, make_context: Any
) -> None:
    models = [network() for _ in range(3)]
    for stray, (model, seed) in enumerate(zip(models, (1, 1, 2), strict=True)):
        context = make_context(model, seed=seed)
        torch.manual_seed(stray)
        before = torch.get_rng_state()
        quick(name).shape(model, context)
        assert torch.equal(torch.get_rng_state(), before)
    first, again, other = (m.state_dict()["0.weight"] for m in models)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", NAMES)
def test_the_model_keeps_its_shape_is_left_in_eval_mode_and_what_went_through_it_is_counted(
    name: str, network: Any, make_context: Any
) -> None:
    model = network()
    context = make_context(model)
    before = copy.deepcopy(model.state_dict())
    seen: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    shaped = quick(name).shape(model, context)
    assert shaped.trained_samples + shaped.forward_samples == sum(seen)
    assert shaped.trained_samples > 0
    assert not any(m.training for m in model.modules())
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in before.items()}
    assert all(bool(v.isfinite().all()) for v in model.state_dict().values())


@pytest.mark.parametrize("name", NAMES)
def test_the_penalty_reaches_only_units_that_can_be_cut(
    name: str, network: Any, make_context: Any, no_loss: Any
) -> None:
    method = rooms.build("regularisers", quick(name).config() | {"weight_decay": 0.0})
    model = network()
    before = copy.deepcopy(model.state_dict())
    context = make_context(model, task=no_loss)
    assert {g.name for g in context.structure.groups} == {"0", "4"}
    cast(Regulariser, method).shape(model, context)
    assert not torch.equal(model[0].weight, before["0.weight"]) or not torch.equal(model[1].weight, before["1.weight"])
    assert torch.equal(model[9].weight, before["9.weight"])
    assert torch.equal(model[9].bias, before["9.bias"])
