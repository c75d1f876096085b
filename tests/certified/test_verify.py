"""What is certified, what an attack breaks, and that neither contradicts the other."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from autoprune.certified import verify
from autoprune.certified.verify import certify, is_proven
from autoprune.data import TensorSplit
from autoprune.data.images import Pixels
from autoprune.errors import BadData, CheckFailed, NotApplicable
from autoprune.trial import Bench


def line(count: int = 11) -> tuple[nn.Module, TensorSplit]:
    """Return a classifier of numbers, class 1 above 0.5, and numbers from 0 to 1 with their classes."""
    model = nn.Linear(1, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-1.0], [1.0]]))
        model.bias.copy_(torch.tensor([0.5, -0.5]))
    x = torch.linspace(0, 1, count)[:, None] + 0.001
    return model, TensorSplit(x, (x[:, 0] > 0.5).long())


@pytest.mark.parametrize(("epsilon", "expected"), [(0.0, 11), (0.05, 10), (0.15, 8), (0.35, 4), (0.6, 0)])
def test_on_one_layer_certified_is_exact(epsilon: float, expected: int) -> None:
    model, split = line()
    # 0.001, 0.101, ... 1.001: right farther than epsilon from 0.5
    found = certify(model, split, None, epsilon)
    assert found.certified * 11 == pytest.approx(expected)
    assert found.attacked == found.certified
    assert (found.clean, found.count, found.epsilon) == (1.0, 11, epsilon)


def test_what_is_classified_wrongly_is_never_certified() -> None:
    model, split = line()
    labels = split.labels()
    assert labels is not None
    x, _ = next(split.batches(11))
    found = certify(model, TensorSplit(x, 1 - labels), None, 0.05)
    assert (found.clean, found.attacked, found.certified) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("seed", range(5))
def test_against_all_corners_of_tiny_networks(seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval()
    x = torch.randn(60, 4, dtype=torch.float64)
    labels = model(x).argmax(1)
    corners = torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=4)), dtype=torch.float64)
    shares = []
    for epsilon in (0.003, 0.1, 0.5):
        outputs = model((x[:, None] + epsilon * corners).flatten(0, 1)).view(60, len(corners), 3)
        survive = float((outputs.argmax(2) == labels[:, None]).all(1).float().mean())
        found = certify(model, TensorSplit(x, labels), None, epsilon)
        assert found.certified <= survive + 1e-9
        assert found.certified <= found.attacked <= found.clean == 1.0
        shares.append(found.certified)
    assert shares[0] > 0.7
    assert shares == sorted(shares, reverse=True)


def test_digits_the_same_every_time_and_the_model_untouched(digits_bench: Bench) -> None:
    before = copy.deepcopy(digits_bench.model.state_dict())
    found = certify(digits_bench.model, digits_bench.data.validation, Pixels(), 0.0005, samples=40)
    assert certify(digits_bench.model, digits_bench.data.validation, Pixels(), 0.0005, samples=40) == found
    assert found.count == 40
    assert 0 <= found.certified <= found.attacked <= found.clean
    assert all(torch.equal(v, before[k]) for k, v in digits_bench.model.state_dict().items())
    assert next(digits_bench.model.parameters()).dtype == torch.float32


def test_wrong_bounds_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, split = line()
    monkeypatch.setattr(verify, "is_proven", lambda margins, labels: torch.ones_like(labels, dtype=torch.bool))
    with pytest.raises(CheckFailed, match="the bounds are wrong"):
        certify(model, split, None, 0.2)


def test_a_margin_of_zero_proves_nothing() -> None:
    margins = torch.tensor([[0.0, 0.1, 0.2], [0.0, 0.0, 0.2], [-1.0, 0.0, 0.5]])
    assert is_proven(margins, torch.tensor([0, 0, 1])).tolist() == [True, False, False]


def test_an_empty_split_and_a_network_without_rules_are_refused() -> None:
    model, split = line()
    with pytest.raises(BadData, match="nothing to certify"):
        certify(model, split.subset(torch.tensor([], dtype=torch.int64)), None, 0.1)

    class Strange(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x.sin(), x.cos()], 1)

    with pytest.raises(NotApplicable, match="operator sin in 1 has no rule"):
        certify(nn.Sequential(nn.Linear(1, 1), Strange()), split, None, 0.1)
