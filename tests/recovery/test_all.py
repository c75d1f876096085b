"""What every recovery method owes, found by walking the room."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import nn

from autoprune import rooms
from autoprune.errors import BadRecipe, TrialFailed
from autoprune.evidence import Evidence
from autoprune.recovery import Recovery, RecoveryContext


def recovery(name: str) -> Recovery:
    return cast(Recovery, rooms.build("recovery", name))


# Methods that correct a model right after a cut have tests of their own below: alone they have nothing to do.
# Those that give new weights are no recovery of what is there, and depend on the seed; test_reinitialise.py has theirs.
NAMES = [name for name in rooms.names("recovery") if not recovery(name).follows_cut and not recovery(name).resets]
AFTER_A_CUT = [name for name in rooms.names("recovery") if recovery(name).follows_cut]


def epochs_for(method: Recovery, epochs: float) -> float:
    return epochs if method.trains else 0.0


def equal_states(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(v, second[k]) for k, v in first.items())


MakeCut = Callable[..., tuple[nn.Module, nn.Module, RecoveryContext, torch.Tensor]]


def normed_network(inputs: torch.Tensor) -> nn.Module:
    """Return a network for corrections that look at norms, with the statistics of its inputs (N, 3, 6, 6)."""
    torch.manual_seed(0)
    convs = (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8, momentum=None), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1))
    model = nn.Sequential(*convs, nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4)).double()
    model.train()(inputs)
    return model.eval()


class Counter:
    """Counts the samples that go through a network, with and without gradients."""

    def __init__(self, model: nn.Module) -> None:
        self.with_gradients, self.without = 0, 0
        model.register_forward_pre_hook(self._see)

    def _see(self, module: nn.Module, arguments: Any) -> None:
        if torch.is_grad_enabled():
            self.with_gradients += len(arguments[0])
        else:
            self.without += len(arguments[0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("norms", [True, False])
def test_the_cost_is_what_went_through_the_models(name: str, norms: bool, network: Any, make_context: Any) -> None:
    method, model, context = recovery(name), network(norms=norms), make_context()
    student, teacher = Counter(model), Counter(context.teacher)
    cost = method.recover(model, context, epochs_for(method, 1.5))
    assert cost.trained_samples == student.with_gradients == (75 if method.trains else 0)
    assert cost.forward_samples == student.without + teacher.without + teacher.with_gradients


@pytest.mark.parametrize("name", NAMES)
def test_the_model_keeps_its_shape_and_is_left_in_eval_mode(name: str, network: Any, make_context: Any) -> None:
    method, model = recovery(name), network().train()
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    method.recover(model, make_context(), epochs_for(method, 1))
    assert not any(m.training for m in model.modules())
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in before.items()}
    assert all(bool(v.isfinite().all()) for v in model.state_dict().values())
    assert not equal_states(model.state_dict(), before)
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True, True]
    assert torch.equal(model[0].weight, before["0.weight"])


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_result_whatever_the_global_state(
    name: str, network: Any, make_context: Any
) -> None:
    method, models, context = recovery(name), [network(), network()], make_context(seed=3)
    for stray, model in enumerate(models):
        torch.manual_seed(stray)
        state = torch.random.get_rng_state()
        method.recover(model, context, epochs_for(method, 1))
        assert torch.equal(torch.random.get_rng_state(), state)
    assert equal_states(models[0].state_dict(), models[1].state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_training_depends_on_the_seed_and_nothing_else_does(name: str, network: Any, make_context: Any) -> None:
    method, models = recovery(name), [network(), network()]
    for seed, model in enumerate(models):
        method.recover(model, make_context(seed=seed), epochs_for(method, 1))
    assert equal_states(models[0].state_dict(), models[1].state_dict()) != method.trains


@pytest.mark.parametrize("name", NAMES)
def test_the_teacher_is_untouched(name: str, network: Any, make_context: Any) -> None:
    method, context = recovery(name), make_context()
    before = copy.deepcopy(context.teacher.state_dict())
    method.recover(network(), context, epochs_for(method, 1))
    assert equal_states(context.teacher.state_dict(), before)
    assert not any(m.training for m in context.teacher.modules())
    assert all(p.grad is None for p in context.teacher.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_zero_epochs_train_nothing(name: str, network: Any, make_context: Any) -> None:
    model = network().train()
    before = {k: v.clone() for k, v in model.named_parameters()}
    cost = recovery(name).recover(model, make_context(), 0.0)
    assert cost.trained_samples == 0
    assert equal_states(dict(model.named_parameters()), before)
    assert not model.training


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_is_not_finite_fails_the_trial(name: str, network: Any, make_context: Any) -> None:
    method, model = recovery(name), network()
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    with pytest.raises(TrialFailed, match=r"NaN|nan"):
        method.recover(model, make_context(), epochs_for(method, 1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_work_happens_on_the_device_asked_for(name: str, network: Any, make_context: Any) -> None:
    method, model = recovery(name), network()
    context = replace(make_context(), device=torch.device("cuda"), mixed_precision=True)
    method.recover(model, context, epochs_for(method, 1))
    assert {v.device.type for v in model.state_dict().values()} == {"cuda"}
    assert {v.device.type for v in context.teacher.state_dict().values()} == {"cpu"}
    assert {v.dtype for v in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", NAMES)
def test_mixed_precision_keeps_the_model_in_single_precision(name: str, network: Any, make_context: Any) -> None:
    method, model = recovery(name), network()
    method.recover(model, replace(make_context(), mixed_precision=True), epochs_for(method, 1))
    floating = [v for v in model.state_dict().values() if v.is_floating_point()]
    assert {v.dtype for v in floating} == {torch.float32}
    assert all(bool(v.isfinite().all()) for v in floating)


@pytest.mark.parametrize("name", AFTER_A_CUT)
def test_a_correction_brings_the_cut_model_nearer_to_the_base_model(name: str, make_cut: MakeCut) -> None:
    inputs = torch.randn(64, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    reads_norms = Evidence.READINGS in recovery(name).needs
    base, cut_model, context, inputs = make_cut(normed_network(inputs), inputs) if reads_norms else make_cut()
    corrected = copy.deepcopy(cut_model)
    recovery(name).recover(corrected, context, 0.0)
    with torch.no_grad():
        before, after = ((m(inputs) - base(inputs)).square().mean() for m in (cut_model, corrected))
    assert after < before
    assert not any(m.training for m in corrected.modules())
    shapes = [v.shape for v in cut_model.state_dict().values()]
    assert [v.shape for v in corrected.state_dict().values()] == shapes


@pytest.mark.parametrize("name", AFTER_A_CUT)
def test_a_correction_is_repeatable_and_leaves_the_base_model_alone(name: str, make_cut: MakeCut) -> None:
    base, cut_model, context, _ = make_cut()
    before = copy.deepcopy(base.state_dict())
    models = [copy.deepcopy(cut_model), copy.deepcopy(cut_model)]
    for model in models:
        recovery(name).recover(model, context, 0.0)
    assert equal_states(models[0].state_dict(), models[1].state_dict())
    assert equal_states(base.state_dict(), before)


@pytest.mark.parametrize("name", AFTER_A_CUT)
def test_without_a_cut_a_correction_says_so(name: str, network: Any, make_context: Any) -> None:
    with pytest.raises(BadRecipe, match="cannot run on its own"):
        recovery(name).recover(network(), make_context(), 0.0)
