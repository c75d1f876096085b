from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from autoprune.errors import BadInput
from autoprune.graph import trace
from autoprune.initialisation import reinitialise
from autoprune.models import build_model


def halves(name: str, shape: tuple[int, ...]) -> tuple[nn.Module, nn.Module]:
    """Return a model and its cut to half of all units."""
    model = build_model({"name": name}, 10)
    structure = trace(model, torch.randn(2, *shape), verify=False)
    return model, structure.cut(model, 0.5)


def spread(tensor: torch.Tensor) -> float:
    return float(tensor.detach().std())


def test_convolutions_have_the_spread_of_the_cut_shape() -> None:
    _, cut = halves("vgg16_bn_cifar", (3, 32, 32))
    reinitialise(cut, build_model({"name": "vgg16_bn_cifar"}, 10, seed=1), seed=1)
    convs = [m for m in cut.modules() if isinstance(m, nn.Conv2d) and m.out_channels >= 64]
    assert len(convs) >= 8
    for conv in convs:
        assert spread(conv.weight) == pytest.approx(math.sqrt(2 / (9 * conv.out_channels)), rel=0.05)
    for norm in (m for m in cut.modules() if isinstance(m, nn.BatchNorm2d)):
        assert norm.weight.eq(1).all()
        assert norm.bias.eq(0).all()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.running_mean.eq(0).all()
        assert norm.running_var.eq(1).all()


class Drawn(nn.Module):
    """Three layers, wide before narrow, whose weights one initialiser draws."""

    def __init__(self, draw: Any) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, 512), nn.Linear(512, 256), nn.Linear(256, 512)
        self.d = nn.Linear(512, 10)
        for layer in (self.a, self.b, self.c, self.d):
            if draw is not None:
                draw(layer.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.d(self.c(self.b(self.a(x).relu()).relu()).relu())


def expected(rule: str, n_in: int, n_out: int) -> float:
    return {
        "default": math.sqrt(1 / (3 * n_in)),
        "he": math.sqrt(2 / n_in),
        "he_out": math.sqrt(2 / n_out),
        "glorot": math.sqrt(2 / (n_in + n_out)),
        "fixed": 0.01,
    }[rule]


@pytest.mark.parametrize(
    ("rule", "draw"),
    [
        ("default", None),
        ("he", nn.init.kaiming_normal_),
        ("he_out", lambda w: nn.init.kaiming_uniform_(w, mode="fan_out", nonlinearity="relu")),
        ("glorot", nn.init.xavier_uniform_),
        ("fixed", lambda w: nn.init.normal_(w, std=0.01)),
    ],
)
def test_the_rule_of_the_initialiser_is_found_out_and_holds_for_the_small_shapes(rule: str, draw: Any) -> None:
    torch.manual_seed(0)
    model, other = Drawn(draw).eval(), Drawn(draw).eval()
    structure = trace(model, torch.randn(2, 64))
    # each layer shrinks by a share of its own, so that no wrong fan gives the right spread
    cut = structure.cut(model, {"a": range(64), "b": range(192), "c": range(128)})
    reinitialise(cut, other, seed=0)
    for layer in (cut.a, cut.b, cut.c):
        wanted = expected(rule, layer.in_features, layer.out_features)  # type: ignore[union-attr,arg-type]
        assert spread(layer.weight) == pytest.approx(wanted, rel=0.05)  # type: ignore[arg-type,union-attr]
    # biases are torch's default everywhere: their bound follows the number of inputs
    assert float(cut.b.bias.detach().abs().max()) == pytest.approx(1 / math.sqrt(64), rel=0.1)  # type: ignore[union-attr,operator]


def test_what_the_base_model_lacks_starts_by_itself() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    factored = nn.Sequential(nn.Sequential(nn.Linear(8, 2, bias=False), nn.Linear(2, 8)), nn.ReLU(), nn.Linear(8, 4))
    before = {k: v.clone() for k, v in factored.state_dict().items()}
    state = torch.get_rng_state()
    reinitialise(factored, model, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(not torch.equal(v, before[k]) for k, v in factored.state_dict().items())
    first = {k: v.clone() for k, v in factored.state_dict().items()}
    reinitialise(factored, model, seed=3)
    assert all(torch.equal(v, first[k]) for k, v in factored.state_dict().items())


def test_what_cannot_start_anew_is_named() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

    model = nn.Sequential()
    model.added = Scaled()
    with pytest.raises(BadInput, match="module 'added' is not in the base model"):
        reinitialise(model, nn.Sequential(), seed=0)
