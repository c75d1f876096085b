"""Neuron stability and the certified loss, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from autoprune.certified.bounds import Bounded
from autoprune.certified.box import box_around
from autoprune.certified.training import CertifiedSettings, instability
from autoprune.data import Data, TensorSplit
from autoprune.data.images import Pixels
from autoprune.errors import NotApplicable
from autoprune.tasks import Task, classification

from .test_bounds import POINT, two_layers


def with_scale(scale: float) -> nn.Sequential:
    """Return the two layers with a batch norm of this scale between them that leaves its input as it is."""
    first, relu, last = two_layers()
    norm = nn.BatchNorm1d(2, eps=0.0).double()
    with torch.no_grad():
        norm.weight.fill_(scale)
        norm.running_var.fill_(scale**2)  # type: ignore[union-attr]
    return nn.Sequential(first, norm, relu, last).eval()


@pytest.mark.parametrize(
    ("scale", "expected"), [(1.0, (-0.670967, -0.635149)), (2.0, (-0.741195, -0.734072))], ids=["one", "two"]
)
def test_stability_of_two_neurons_by_hand(scale: float, expected: tuple[float, float]) -> None:
    read = Bounded(with_scale(scale), POINT.repeat(2, 1)).on(box_around(POINT, 0.25, None)).pre_activations
    assert float(instability(read).detach()) == pytest.approx(sum(expected) / 2, abs=1e-6)
    # l * u is -0.1875 and -0.25 whatever the scale when it is left out
    plain = -(math.tanh(1 - 0.1875) + math.tanh(0.75)) / 2
    assert float(instability(read, gamma_pow=0).detach()) == pytest.approx(plain, abs=1e-6)


def test_the_scale_it_divides_by_gets_no_gradient() -> None:
    model = with_scale(2.0)
    bounds = Bounded(model, POINT.repeat(2, 1)).on(box_around(POINT, 0.25, None))
    detached = [type(read)(read.interval, None) for read in bounds.pre_activations]
    # the gradient that reaches the scale is that of the bounds, divided by a constant
    (expected,) = torch.autograd.grad(
        -torch.tanh(1 + detached[0].interval.low * detached[0].interval.high / (4 + 1e-8)).mean(),
        model[1].weight,
        retain_graph=True,
    )
    (found,) = torch.autograd.grad(instability(bounds.pre_activations), model[1].weight, retain_graph=True)
    assert torch.allclose(found, expected)
    (of_weight,) = torch.autograd.grad(instability(bounds.pre_activations), model[0].weight)
    assert bool(of_weight.abs().sum() > 0)


def test_stable_neurons_lie_below_unstable_ones() -> None:
    model = two_layers()
    narrow, wide = (
        Bounded(model, POINT.repeat(2, 1)).on(box_around(POINT, e, None)).pre_activations for e in (0.01, 2.0)
    )
    assert float(instability(narrow).detach()) < -0.76
    assert float(instability(wide).detach()) > 0.9


def test_a_network_without_relu_has_none() -> None:
    model = nn.Linear(2, 3).double()
    read = Bounded(model, POINT.repeat(2, 1)).on(box_around(POINT, 0.1, None)).pre_activations
    with pytest.raises(NotApplicable, match="the network has none"):
        instability(read)


def data(pixels: Pixels | None = None) -> Data:
    split = TensorSplit(POINT.repeat(4, 1), torch.tensor([0, 1, 0, 1]))
    return Data(split, split, None, "points", 2, "points", pixels)


def test_the_loss_rises_from_the_plain_one_to_that_of_the_worst_logits() -> None:
    model, task, labels = two_layers(), classification(), torch.tensor([0])
    settings = CertifiedSettings(epsilon=0.25, worst_weight=0.5, rho=0.0, ramp=1.0, batch_size=2)
    # 8 samples are 4 steps
    loss = settings.certified_loss(model, data(), task, samples=8)
    found = [float(loss(model, POINT, labels).detach()) for _ in range(6)]
    # logits: relu(0.25), relu(0) -> (0.25, -0.25); at full radius the worst margin is -0.5
    plain = math.log(1 + math.exp(-0.5))
    assert found[0] == pytest.approx(plain)
    assert found[4] == pytest.approx(0.5 * plain + 0.5 * math.log(1 + math.exp(0.5)))
    assert found[5] == found[4]
    assert found == sorted(found)


def test_the_weight_of_stability() -> None:
    model, labels = two_layers(), torch.tensor([0])
    plain, heavy = (
        CertifiedSettings(epsilon=0.25, worst_weight=0.0, rho=rho, ramp=0.0, batch_size=2).certified_loss(
            model, data(), classification(), samples=8
        )
        for rho in (0.0, 2.0)
    )
    plain(model, POINT, labels), heavy(model, POINT, labels)
    gap = heavy(model, POINT, labels) - plain(model, POINT, labels)
    assert float(gap.detach()) == pytest.approx(-(0.670967 + 0.635149), abs=1e-5)


def test_a_task_without_classes_is_refused() -> None:
    task = Task(loss=lambda o, t: o.sum(), metric=lambda o, t: (0.0, 1))
    with pytest.raises(NotApplicable, match="worst logits are those of classes"):
        CertifiedSettings().certified_loss(two_layers(), data(), task, 8)
