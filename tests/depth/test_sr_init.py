"""SR-init's oracles: restoration, dead and load-bearing units, statistics that are reset, thresholds."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from autoprune.base import make_base
from autoprune.depth.sr_init import SrInit
from autoprune.evidence import ModelEvidence
from autoprune.evidence.reinitialisation import accuracy, random_instance, reinitialisation_drops
from autoprune.graph import Block
from autoprune.models.training import train_base
from autoprune.specs import TrainSpec
from autoprune.trial import Bench


def test_state_flags_and_random_state_are_restored_to_the_bit(deep_bench: Bench) -> None:
    model = copy.deepcopy(deep_bench.model)
    model.train()
    model.layer2[1].bn1.eval()
    before, modes, state = (
        copy.deepcopy(model.state_dict()),
        [m.training for m in model.modules()],
        torch.get_rng_state(),
    )
    names = [block.name for block in deep_bench.base.structure.blocks]
    first = reinitialisation_drops(model, names, deep_bench.source, 1, 200)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    again = reinitialisation_drops(model, names, deep_bench.source, 1, 200)
    assert first == again
    other = reinitialisation_drops(model, names, deep_bench.source, 2, 200)
    assert first != other


class _Dead(nn.Module):
    """A residual unit whose branch is multiplied by nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 1, 3, 1, 1), nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0 * self.norm(self.conv(x))


class _Alive(_Dead):
    def forward(self, x: Tensor) -> Tensor:
        return x + 3 * self.norm(self.conv(x))


def test_a_dead_unit_costs_nothing_whatever_the_seed_and_goes_first(digits_bench: Bench) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(_Alive(), _Dead(), copy.deepcopy(digits_bench.model)).eval()
    bench = Bench(make_base(model, digits_bench.data.example_inputs), digits_bench.data, digits_bench.task)
    blocks = [block for block in bench.base.structure.blocks if block.name in ("0", "1")]
    for instance in (1, 2, 3, 4):
        assert float(bench.evidence.reinitialisation_drops(instance, 200)["1"]) == 0.0
    scores = SrInit().score(blocks, bench.evidence)
    assert scores[1] == 0
    assert scores[0] > 0.1


def test_a_unit_that_is_the_only_path_costs_all_but_chance(digits_bench: Bench) -> None:
    model = copy.deepcopy(digits_bench.model)
    train_base(model, digits_bench.data, digits_bench.task, TrainSpec(epochs=8), seed=0)
    model.eval()
    whole = accuracy(model, digits_bench.source, 1000)
    assert whole > 0.95
    # the unit's shortcut is part of it, so nothing goes around
    left = [
        whole - float(reinitialisation_drops(model, ["layer3"], digits_bench.source, i, 1000)["layer3"])
        for i in range(1, 6)
    ]
    assert abs(sum(left) / 5 - 0.1) < 0.2


def test_running_statistics_and_scales_are_those_of_a_new_model(deep_bench: Bench) -> None:
    model = copy.deepcopy(deep_bench.model)
    norm = model.layer1[1].bn2
    norm.running_mean.fill_(5)
    norm.weight.data.fill_(7)
    seen: list[tuple[Tensor, ...]] = []

    def look(module: nn.Module, *_: object) -> None:
        tensors = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        seen.append(tuple(t.detach().clone() for t in tensors))

    handle = norm.register_forward_hook(look)
    reinitialisation_drops(model, ["layer1.1"], deep_bench.source, 1, 50)
    handle.remove()
    (mean, *_), (reset_mean, reset_var, weight, bias) = seen
    assert bool((mean == 5).all())
    assert bool((reset_mean == 0).all() and (reset_var == 1).all() and (weight == 1).all() and (bias == 0).all())
    assert bool((norm.running_mean == 5).all() and (norm.weight == 7).all())


def test_a_random_instance_is_new_everywhere_and_kaiming_normal() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 64, 3), nn.LayerNorm(4), nn.Linear(512, 64))
    model[0].register_parameter("gamma", nn.Parameter(torch.randn(64)))
    other = random_instance(model, 1)
    assert not torch.equal(other[0].weight, model[0].weight)
    assert not torch.equal(other[2].bias, model[2].bias)
    # gain of relu over the root of the fan in, 8 * 9 and 512
    assert float(other[0].weight.detach().std()) == pytest.approx((2 / 72) ** 0.5, rel=0.05)
    assert float(other[2].weight.detach().std()) == pytest.approx((2 / 512) ** 0.5, rel=0.02)
    same = random_instance(model, 1)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), same.parameters(), strict=True))
    assert not torch.equal(random_instance(model, 2)[0].weight, other[0].weight)


def test_parameters_without_an_initialiser_are_redrawn_at_their_scale() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(2 + 0.1 * torch.randn(1000))

        def forward(self, x: Tensor) -> Tensor:
            return relu(self.gamma * x)

    torch.manual_seed(0)
    model = Scaled()
    gamma = random_instance(model, 1).gamma.detach()
    assert isinstance(gamma, Tensor)
    assert not torch.equal(gamma, model.gamma)
    assert (float(gamma.mean()), float(gamma.std())) == (pytest.approx(2, abs=0.02), pytest.approx(0.1, abs=0.01))


class _Told:
    """Evidence with given drops of two instances."""

    def reinitialisation_drops(self, instance: int, samples: int) -> dict[str, Tensor]:
        assert samples == 1500
        table = {1: (0.1, 0.6), 2: (0.3, 0.7)}
        return {name: torch.tensor(d, dtype=torch.float64) for name, d in zip("ab", table[instance], strict=True)}


def test_score_is_the_mean_drop_and_tau_lets_go() -> None:
    blocks = [Block("a", 1.0, 1, False), Block("b", 1.0, 1, False)]
    method = SrInit(n_seeds=2, score_samples=1500, tau=0.2)
    scores = method.score(blocks, _Told())  # type: ignore[arg-type]
    assert scores.tolist() == pytest.approx([0.2, 0.65])
    assert method.may_go(scores).tolist() == [bool(scores[0] <= 0.2), False]
    assert SrInit().may_go(scores).tolist() == [True, True]


def test_drops_are_measured_once_for_all_trials(
    deep_bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evidence() -> ModelEvidence:
        base = deep_bench.base
        return ModelEvidence(
            deep_bench.model, base.structure, deep_bench.source, seed=0, cache=tmp_path, fingerprint=base.fingerprint
        )

    first = SrInit(n_seeds=1, score_samples=100).score(deep_bench.base.structure.blocks, evidence())
    monkeypatch.setattr("autoprune.evidence.store.reinitialisation_drops", None)
    again = SrInit(n_seeds=1, score_samples=100).score(deep_bench.base.structure.blocks, evidence().with_seed(9))
    assert torch.equal(first, again)
