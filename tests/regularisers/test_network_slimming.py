from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from autoprune import rooms
from autoprune.allocation import AllocationContext, Path
from autoprune.criteria.bn_scale import BnScale
from autoprune.data import TensorSplit
from autoprune.errors import BadRecipe
from autoprune.evidence import ModelEvidence
from autoprune.graph import Structure, trace
from autoprune.recipe import Recipe
from autoprune.regularisers.network_slimming import NetworkSlimming
from autoprune.training import train
from autoprune.trial import Bench, prepare

PLAIN = {"momentum": 0.0, "weight_decay": 0.0, "schedule": "constant", "batch_size": 64}


def one_norm(scales: list[float]) -> nn.Sequential:
    n = len(scales)
    model = nn.Sequential(nn.Conv2d(3, n, 1), nn.BatchNorm2d(n), nn.ReLU(), nn.Flatten(), nn.Linear(64 * n, 4))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor(scales))
    return model.eval()


def test_one_step_moves_each_scale_by_rate_times_strength_towards_zero(make_context: Any, no_loss: Any) -> None:
    model = one_norm([0.5, -0.3, 0.0, 0.2])
    before = copy.deepcopy(model.state_dict())
    method = NetworkSlimming(strength=0.01, epochs=1 / 8, lr=0.1, **PLAIN)
    assert method.shape(model, make_context(model, task=no_loss)).trained_samples == 64
    assert model[1].weight.tolist() == pytest.approx([0.499, -0.299, 0.0, 0.199], abs=1e-7)
    for name in ("0.weight", "0.bias", "1.bias", "4.weight", "4.bias"):
        assert torch.equal(model.state_dict()[name], before[name])


def test_the_penalty_is_the_gradient_of_the_l1_norm(make_context: Any) -> None:
    """Against autograd of loss + strength * |gamma|, with momentum and decay."""
    models = [one_norm([0.5, -0.3, 0.2, 0.7]) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    settings = PLAIN | {"momentum": 0.9, "weight_decay": 0.01}
    method = NetworkSlimming(strength=0.02, epochs=1.0, lr=0.05, **settings)
    context = make_context(models[0])
    method.shape(models[0], context)

    def loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        penalty = 0.02 * models[1][1].weight.abs().sum()
        return context.task.loss(model(inputs), targets) + penalty

    train(models[1], context.data.train, method, task=context.task, samples=512, seed=0, loss=loss, decay_all=True)
    for first, second in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(first, second, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_sparsity_appears(seed: int, network: Any, make_context: Any) -> None:
    def share_near_zero(strength: float) -> float:
        model = network(seed)
        settings = {"lr": 0.05, "momentum": 0.9, "schedule": "constant", "weight_decay": 1e-4, "batch_size": 32}
        method = NetworkSlimming(strength=strength, epochs=200 * 32 / 512, initial_scale=0.5, **settings)
        method.shape(model, make_context(model, seed=seed))
        return float((torch.cat([model[1].weight, model[5].weight]).abs() < 0.05).float().mean())

    assert share_near_zero(1e-2) > share_near_zero(0.0)


def test_scales_start_where_asked_before_the_first_cut_only(network: Any, make_context: Any) -> None:
    for first, expected in ((True, 0.5), (False, 1.0)):
        model = network()
        nn.init.ones_(model[1].bias)
        NetworkSlimming(epochs=0.0, initial_scale=0.5).shape(model, make_context(model, first=first))
        assert model[1].weight.tolist() == [expected] * 16
        assert model[1].bias.tolist() == [0.0 if first else 1.0] * 16


class Residual(nn.Module):
    """A stem, one block with an inner and a last norm, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.bn1 = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.linear = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.bn0(self.stem(x)))
        x = relu(x + self.bn2(self.conv2(relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean(dim=(2, 3)))


class PreActivation(Residual):
    """The norm before the layer: bn1 reads the stream, bn2 what is inside."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(8), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv2(relu(self.bn2(self.conv1(relu(self.bn1(x))))))
        return self.linear(relu(self.bn0(x)).mean(dim=(2, 3)))


@pytest.mark.parametrize(("kind", "inner"), [(Residual, "bn1"), (PreActivation, "bn2")])
def test_residual_streams_are_left_alone_unless_asked(
    kind: type[Residual], inner: str, make_context: Any, no_loss: Any
) -> None:
    def penalised(streams: bool) -> set[str]:
        model = kind().eval()
        before = {name: v.clone() for name, v in model.named_parameters()}
        method = NetworkSlimming(strength=0.01, epochs=1 / 8, lr=0.1, streams=streams, **PLAIN)
        method.shape(model, make_context(model, task=no_loss))
        return {name for name, v in model.named_parameters() if not torch.equal(v, before[name])}

    assert penalised(False) == {f"{inner}.weight"}
    assert penalised(True) == {"bn0.weight", "bn1.weight", "bn2.weight"}


@pytest.mark.parametrize("kind", [Residual, PreActivation, None])
def test_without_zeroed_channels_the_cut_model_computes_the_same(
    kind: type[Residual] | None, network: Any, four_classes: TensorSplit
) -> None:
    model = network() if kind is None else kind()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.uniform_(module.bias, -0.2, 0.5)
            module.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr]
    inputs, _ = next(four_classes.batches(16))
    structure = trace(model.eval(), inputs[:2])
    inner = [g for g in structure.groups if not g.is_stream]
    assert inner
    keep = {}
    with torch.no_grad():
        for group in inner:
            gone = list(range(0, group.size, 3))
            keep[group.name] = [i for i in range(group.size) if i not in gone]
            for norm in group.norms:
                module = model.get_submodule(norm.module)
                module.weight[gone] = 0.0  # type: ignore[index,operator]
                module.bias[gone] = 0.0  # type: ignore[index,operator]
        assert torch.allclose(structure.cut(model, keep)(inputs), model(inputs), atol=1e-5)


def test_bn_scale_leaves_streams_whole_when_asked(make_context: Any) -> None:
    from autoprune.errors import NotApplicable

    model = Residual().eval()
    structure = make_context(model).structure
    stream = next(g for g in structure.groups if g.is_stream)
    evidence = ModelEvidence(model, structure, None, seed=0)  # type: ignore[arg-type]
    assert BnScale().score(stream, evidence).shape == (8,)
    with pytest.raises(NotApplicable, match="leaves residual streams whole"):
        BnScale(streams=False).score(stream, evidence)


def test_a_model_without_such_norms_is_refused(make_context: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    with pytest.raises(BadRecipe, match="penalises the scales of norms, and no unit"):
        NetworkSlimming().shape(model, make_context(model))


@pytest.fixture
def removed(make_context: Any) -> Callable[[float], list[int]]:
    """Return how many channels of two layers a removed fraction takes; scales 0.01 to 0.05, and 0.5 to 0.9."""
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 5, 3), nn.BatchNorm2d(5), nn.ReLU(),
        nn.Flatten(), nn.Linear(5 * 16, 4),
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.03, -0.01, 0.05, 0.02, -0.04]))
        model[4].weight.copy_(torch.tensor([0.9, 0.5, -0.7, 0.6, 0.8]))
    structure: Structure = make_context(model).structure
    evidence = ModelEvidence(model, structure, None, seed=0)  # type: ignore[arg-type]
    scores = {g.name: BnScale().score(g, evidence) for g in structure.groups}
    path: Path = rooms.build("allocation", "global").path(AllocationContext.of(scores, structure))  # type: ignore[attr-defined]

    def at(removed_fraction: float) -> list[int]:
        # strength s stands for the share 1 - 0.5 ** s of all channels; a little more against rounding
        strength = -np.log2(1 - removed_fraction) + 1e-9
        return (structure.sizes - np.maximum(path(strength), structure.min_counts)).astype(int).tolist()  # type: ignore[no-any-return]

    return at


def test_one_threshold_serves_the_whole_network(removed: Callable[[float], list[int]]) -> None:
    assert removed(0.4) == [4, 0]
    # six are below the threshold; the first layer keeps its best, which no other channel replaces
    assert removed(0.6) == [4, 1]
    # the reference takes one more than the share says
    assert sum(removed(0.7)) + 1 == 7


def test_several_passes_train_before_every_cut(digits_bench: Bench) -> None:
    recipe = Recipe.parse(
        {
            "criterion": {"name": "bn_scale", "streams": False},
            "normalisation": "none",
            "allocation": "global",
            "regulariser": {"name": "network_slimming", "epochs": 0.25, "strength": 0.01},
            "schedule": {"name": "iterative", "count": 3, "epochs_between": 0.5},
        }
    )
    prepared = prepare(recipe, digits_bench, seed=0)
    samples = len(digits_bench.data.train)
    assert prepared.cost.trained_samples == 3 * round(0.25 * samples) + 2 * round(0.5 * samples)
    assert 0.45 < prepared.amounts.flops_fraction <= 0.5
    streams = {g.name: g.size for g in digits_bench.base.structure.groups if g.is_stream}
    assert {name: len(prepared.kept[name]) for name in streams} == streams
