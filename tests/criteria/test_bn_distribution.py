from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoprune.criteria.bn_distribution import BnDistribution
from autoprune.errors import NotApplicable
from autoprune.evidence import ModelEvidence
from autoprune.evidence.gaussian import BY_QUADRATURE, moments
from autoprune.graph import Structure

Look = Callable[[nn.Module, Tensor], tuple[Structure, ModelEvidence]]


def of(b: float, g: float, activation: str = "relu", slope: float = 0.0) -> tuple[float, float, float]:
    made = moments(activation, *torch.tensor([[b], [abs(g)]], dtype=torch.float64), slope)
    return float(made.mean), float(made.square), float(made.magnitude)


@pytest.mark.parametrize(
    ("b", "g", "m1", "m2"),
    [
        (0, 1, 0.398942280, 0.5),
        (1, 1, 1.083315471, 1.924660217),
        (-1, 1, 0.083315471, 0.075339783),
        (0.5, 2, 1.072689396, 2.931170001),
        (0.5, -2, 1.072689396, 2.931170001),
        (-0.2, 0.1, 0.000849070, 0.000057687),
        (2, 0.1, 2.0, 4.01),
        (0.7, 0, 0.7, 0.49),
        (-0.7, 0, 0.0, 0.0),
    ],
)
def test_rectified_moments(b: float, g: float, m1: float, m2: float) -> None:
    assert of(b, g)[:2] == (pytest.approx(m1, abs=1e-9), pytest.approx(m2, abs=1e-9))


def test_other_activations() -> None:
    assert of(3, 2, "relu6")[0] == pytest.approx(3.0, abs=1e-12)
    mean, _, magnitude = of(-0.5, 1, "leaky_relu", 0.1)
    assert (mean, magnitude) == (pytest.approx(0.128016902, abs=1e-9), pytest.approx(0.267576213, abs=1e-9))


@pytest.mark.parametrize("activation", ["identity", "relu", "relu6", "leaky_relu", *BY_QUADRATURE])
def test_every_activation_against_a_fine_sum(activation: str) -> None:
    function = {"identity": lambda x: x, "leaky_relu": lambda x: F.leaky_relu(x, 0.2)}.get(activation)
    function = function or getattr(F, activation)
    z = torch.linspace(-10, 10, 200_001, dtype=torch.float64)
    weight = torch.exp(-z.square() / 2) / (2 * torch.pi) ** 0.5 * (z[1] - z[0])
    for b, g in ((0.3, 0.9), (-1.5, 1.2), (4.0, 2.0)):
        out = function(b + g * z)
        expected = [float((weight * v).sum()) for v in (out, out.square(), out.abs())]
        assert of(b, g, activation, 0.2) == pytest.approx(expected, abs=0.01 if activation in BY_QUADRATURE else 1e-7)


def test_identities() -> None:
    b = torch.linspace(-30, 30, 121, dtype=torch.float64)
    for g in (0.5, 1.0, 3.0):
        scale = torch.full_like(b, g)
        up, down = moments("relu", b, scale), moments("relu", -b, scale)
        assert torch.allclose(up.mean - down.mean, b, atol=1e-12)
        assert bool((up.mean.diff() >= -1e-12).all())
        assert bool((moments("relu", b, scale + 0.1).mean >= up.mean - 1e-12).all())
        assert torch.allclose(moments("relu", 4 * b, 4 * scale).mean, 4 * up.mean)
        assert bool((up.mean >= 0).all())
        assert bool((up.std >= 0).all())


def test_far_below_zero_keeps_its_digits() -> None:
    # E[relu(z)] = phi(t) * (1/t^2 - 3/t^4 + 15/t^6 ...) for t far below zero
    t = 20.0
    phi = 2.71828182845904523536 ** (-t * t / 2) / (2 * 3.14159265358979) ** 0.5
    series = 1 / t**2 - 3 / t**4 + 15 / t**6 - 105 / t**8 + 945 / t**10 - 10395 / t**12
    assert of(-t, 1)[0] == pytest.approx(phi * series, rel=1e-6)


def normed(gamma: list[float], beta: list[float], activation: nn.Module | None = None) -> nn.Sequential:
    width = len(gamma)
    model = nn.Sequential(
        nn.Conv2d(2, width, 1), nn.BatchNorm2d(width), activation or nn.ReLU(), nn.Conv2d(width, 3, 1), nn.Flatten()
    )
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor(gamma))
        model[1].bias.copy_(torch.tensor(beta))
    return model


def scores(look: Look, model: nn.Module, criterion: BnDistribution, group: int = 0) -> list[float]:
    structure, evidence = look(model, torch.randn(16, 2, 1, 1))
    return criterion.score(structure.groups[group], evidence).tolist()


def test_agrees_with_a_real_batch_norm() -> None:
    gamma, beta = torch.randn(4).double(), torch.randn(4).double()
    norm = nn.BatchNorm2d(4).double()
    with torch.no_grad():
        norm.weight.copy_(gamma)
        norm.bias.copy_(beta)
        seen = F.relu(norm(3 + 2 * torch.randn(256, 4, 16, 16, dtype=torch.float64))).mean(dim=(0, 2, 3))
    assert torch.allclose(moments("relu", beta, gamma.abs()).mean, seen, atol=0.003)


def test_disagrees_with_the_scale(look: Look) -> None:
    model = normed([1.0, 0.1, 0.5], [-2.0, 0.5, 0.0])
    as_in_paper = scores(look, model, BnDistribution(effective_scale=False))
    assert as_in_paper == pytest.approx([0.00849, 0.50000, 0.19947], abs=1e-5)
    scale = scores(look, model, BnDistribution(score_by="gamma"))
    assert (torch.tensor(as_in_paper).argsort().tolist(), torch.tensor(scale).argsort().tolist()) == (
        [0, 2, 1],
        [1, 2, 0],
    )


def test_a_dead_convolution_emits_its_shift(look: Look) -> None:
    model = normed([1.0, 1.0], [-0.5, -0.5])
    with torch.no_grad():
        model[0].weight[0] = 0
        model[1].running_var[0] = 0
    assert scores(look, model, BnDistribution()) == pytest.approx([0.0, 0.1978], abs=1e-4)
    assert scores(look, model, BnDistribution(effective_scale=False)) == pytest.approx([0.1978, 0.1978], abs=1e-4)


@pytest.mark.parametrize(
    ("score_by", "expected"),
    [("mean", 1.083315471), ("rms", 1.924660217**0.5), ("active", 0.841344746), ("gamma", 1.0)],
)
def test_every_choice_of_score(look: Look, score_by: str, expected: float) -> None:
    model = normed([1.0, -1.0], [1.0, 1.0])
    found = scores(look, model, BnDistribution(score_by=score_by, effective_scale=False))
    assert found == pytest.approx([expected, expected], abs=1e-6)


def test_scaling_norm_against_reader_changes_nothing_downstream(look: Look) -> None:
    model = normed([1.0, 0.3, 0.5], [0.2, 0.5, -0.1])
    criterion = BnDistribution(downstream=True, effective_scale=False)
    before = scores(look, model, criterion)
    with torch.no_grad():
        model[1].weight[1] *= 8
        model[1].bias[1] *= 8
        model[3].weight[:, 1] /= 8
    assert scores(look, model, criterion) == pytest.approx(before)
    assert len(set(before)) == 3


@pytest.mark.parametrize(
    ("activation", "name", "slope"),
    [
        (nn.ReLU(inplace=True), "relu", 0),
        (nn.ReLU6(), "relu6", 0),
        (nn.Identity(), "identity", 0),
        (nn.LeakyReLU(0.1), "leaky_relu", 0.1),
        (nn.GELU(), "gelu", 0),
    ],
)
def test_the_activation_that_follows_is_found(look: Look, activation: nn.Module, name: str, slope: float) -> None:
    found = scores(look, normed([2.0, 1.0], [3.0, 0.5], activation), BnDistribution(effective_scale=False))
    assert found == pytest.approx([of(3, 2, name, slope)[2], of(0.5, 1, name, slope)[2]])


class _Stream(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)
        self.inner, self.bn1 = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)
        self.back, self.bn2 = nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        x = F.relu(x + self.bn2(self.back(F.relu(self.bn1(self.inner(x))))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def test_a_stream_is_the_sum_so_far_at_every_reader(look: Look) -> None:
    model = _Stream()
    with torch.no_grad():
        model.bn0.weight.copy_(torch.tensor([1.0, -0.6]))
        model.bn0.bias.copy_(torch.tensor([0.2, -1.0]))
        model.bn2.weight.copy_(torch.tensor([0.5, 0.8]))
        model.bn2.bias.copy_(torch.tensor([-0.3, 0.4]))
    structure, evidence = look(model, torch.randn(16, 2, 1, 1))
    found = BnDistribution(effective_scale=False).score(structure.group("stem"), evidence).tolist()
    # the inner convolution reads the stem alone, the head the sum of both
    expected = [
        (of(0.2, 1.0)[0] + of(-0.1, 1.25**0.5)[0]) / 2,
        (of(-1.0, 0.6)[0] + of(-0.6, 1.0)[0]) / 2,
    ]
    assert found == pytest.approx(expected)


def test_behind_a_depthwise_convolution_the_last_norm_counts(look: Look) -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.ReLU6(),
        nn.Conv2d(3, 3, 1, groups=3), nn.BatchNorm2d(3), nn.ReLU6(),
        nn.Conv2d(3, 3, 1), nn.Flatten(),
    )  # fmt: skip
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([5.0, 0.0, -5.0]))
        model[4].bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
    found = scores(look, model, BnDistribution(effective_scale=False))
    assert found == pytest.approx([of(b, 1.0, "relu6")[0] for b in (0.1, 0.2, 0.3)])


def test_in_a_pre_activation_network_the_reading_norm_counts(look: Look) -> None:
    class PreActivation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.bn, self.conv = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)
            self.last, self.head = nn.BatchNorm2d(2), nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = x + self.conv(F.relu(self.bn(x)))
            return self.head(F.relu(self.last(x)).flatten(1))

    model = PreActivation()
    with torch.no_grad():
        model.bn.bias.copy_(torch.tensor([1.0, -1.0]))
        model.last.bias.copy_(torch.tensor([0.0, 1.0]))
    found = scores(look, model, BnDistribution(effective_scale=False))
    assert found == pytest.approx([(1.083315471 + 0.398942280) / 2, (0.083315471 + 1.083315471) / 2])


def test_without_a_norm_or_a_formula_it_does_not_apply(look: Look) -> None:
    plain = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.Flatten())
    with pytest.raises(NotApplicable, match="bn_distribution needs a batch norm before a layer; group '0' has none"):
        scores(look, plain, BnDistribution())
    with pytest.raises(NotApplicable, match="has no moments for the activation that 3 reads"):
        scores(look, normed([1.0, 2.0], [0.0, 0.0], nn.PReLU()), BnDistribution())
