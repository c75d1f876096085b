from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from autoprune import artefact
from autoprune.artefact import Manifest
from autoprune.cost import count_flops
from autoprune.data import Data, TensorSplit
from autoprune.errors import BadRecipe, TrialFailed
from autoprune.graph import trace
from autoprune.lowrank import LowRankContext
from autoprune.lowrank.lrpet import Lrpet, projected, scales
from autoprune.models import build_model
from autoprune.recipe import Recipe
from autoprune.tasks import classification
from autoprune.training import StepHook, train
from autoprune.training_settings import TrainingSettings
from autoprune.trial import Bench, prepare, run_trial


def test_resnet_56_costs_what_the_authors_report() -> None:
    """MACs of all 55 convolutions at r = floor(n - n * p), the classifier dense: 56.06 M at p = 0.57."""
    model = build_model({"name": "resnet56_cifar"}, 10).eval()
    structure = trace(model, torch.zeros(2, 3, 32, 32))
    method = Lrpet()
    assert structure.flops() == 2 * 125_485_696
    for removed, macs in ((0.57, 56_058_496), (0.80, 26_232_448)):
        flops = 2 * 640.0
        for layer in structure.layers:
            if layer.kind == "conv":
                full = method.full_rank(layer, layer.in_features, layer.out_features)
                flops += method.flops(layer, layer.in_features, layer.out_features, int(full - full * removed))
        assert flops == 2 * macs


def test_projection_by_hand() -> None:
    W = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    expected = torch.tensor([3.113247, 2.075498, 0.0], dtype=torch.float64)
    assert torch.allclose(projected(W, 2), torch.diag(expected), atol=1e-6)
    ones = torch.ones(3, dtype=torch.float64)
    damped = torch.tensor([3.113216, 2.075477, 0.0], dtype=torch.float64)
    assert torch.allclose(projected(W, 2, ones), torch.diag(damped), atol=1e-6)
    small = torch.diag(torch.tensor([3.0, 4.0]))
    assert torch.allclose(projected(small, 1), torch.diag(torch.tensor([0.0, 5.0])), atol=1e-6)
    assert torch.allclose(projected(small, 1, transfer=False), torch.diag(torch.tensor([0.0, 4.0])), atol=1e-6)


def test_the_norm_decides_what_goes() -> None:
    W = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    a = torch.tensor([1.0, 2.0, 10.0], dtype=torch.float64)
    expected = torch.tensor([0.0, 2.0761, 1.0381], dtype=torch.float64)
    assert torch.allclose(projected(W, 2, a), torch.diag(expected), atol=1e-4)
    assert int(projected(W, 2)[2].count_nonzero()) == 0


@pytest.mark.parametrize("with_norm", [False, True])
def test_energy_stays_the_rank_falls_and_a_second_projection_changes_nothing(with_norm: bool) -> None:
    draws = torch.Generator().manual_seed(0)
    W = torch.randn(6, 10, dtype=torch.float64, generator=draws)
    a = 1 + torch.rand(6, dtype=torch.float64, generator=draws) if with_norm else None
    tolerance = 1e-5 if with_norm else 1e-12
    scale = torch.ones(6, dtype=torch.float64) if a is None else a
    once = projected(W, 3, a)
    assert int(torch.linalg.matrix_rank(once)) == 3
    energy = [float((scale[:, None] * w).norm()) for w in (W, once)]
    assert energy[1] == pytest.approx(energy[0], rel=tolerance)
    assert torch.allclose(projected(once, 3, a), once, rtol=tolerance, atol=1e-14)
    assert torch.allclose(projected(W, 6, a), W, rtol=tolerance, atol=1e-14)


def test_a_row_that_its_norm_switches_off_is_damped_and_a_layer_of_zeros_is_left_alone() -> None:
    W = torch.ones(2, 3, dtype=torch.float64)
    a = torch.tensor([1.0, 1e-3], dtype=torch.float64)
    assert float(projected(W, 1, a)[1, 0]) == pytest.approx(1e-6 / (1e-6 + 1e-5), rel=1e-3)
    assert torch.equal(projected(torch.zeros(2, 3), 1), torch.zeros(2, 3))
    with pytest.raises(TrialFailed, match="NaN or infinite"):
        projected(torch.full((2, 2), torch.nan), 1)


def test_the_pair_of_a_projected_layer_is_exact() -> None:
    torch.manual_seed(1)
    conv = nn.Conv2d(5, 7, 3, stride=2, padding=1).double()
    with torch.no_grad():
        conv.weight.copy_(projected(conv.weight.flatten(1), 3).view_as(conv.weight))
    pair = cast(nn.Sequential, Lrpet().factor(conv, 3))
    inputs = torch.randn(2, 5, 9, 8, dtype=torch.float64)
    assert torch.allclose(pair(inputs), conv(inputs), atol=1e-12)
    assert [tuple(m.weight.shape) for m in pair] == [(3, 5, 3, 3), (7, 3, 1, 1)]  # type: ignore[union-attr,arg-type]
    assert count_flops(pair, inputs) == 2 * (5 * 9 + 7) * 3 * 5 * 4
    dead = copy.deepcopy(conv)
    nn.init.zeros_(dead.weight)
    assert torch.equal(Lrpet().factor(dead, 3)(inputs), dead(inputs))


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip


class _Recorder:
    """Trains for real with a hook, and looks at ranks and momentum around every step of it."""

    def __init__(self, split: TensorSplit, settings: dict[str, Any]) -> None:
        self.split, self.settings = split, settings
        self.ranks: list[tuple[int, int]] = []
        self.momentum_kept: list[bool] = []

    def __call__(self, model: nn.Module, epochs: float, hook: StepHook, *purpose: str | int) -> None:
        outer = self

        class Watch(StepHook):
            def begin(self, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
                self.model, self.optimizer = model, optimizer
                hook.begin(model, optimizer, steps)

            def after_step(self, step: int) -> None:
                weight = cast(Any, self.model)[0].weight
                free = int(torch.linalg.matrix_rank(weight.detach().flatten(1)))
                before = self.optimizer.state[weight]["momentum_buffer"].clone()
                hook.after_step(step)
                outer.ranks.append((free, int(torch.linalg.matrix_rank(weight.detach().flatten(1), rtol=1e-4))))
                outer.momentum_kept.append(torch.equal(before, self.optimizer.state[weight]["momentum_buffer"]))

        settings, samples = TrainingSettings(**self.settings), round(epochs * len(self.split))
        train(model, self.split, settings, task=classification(), samples=samples, seed=0, hook=Watch())


def split() -> TensorSplit:
    draws = torch.Generator().manual_seed(0)
    return TensorSplit(torch.randn(48, 2, 6, 6, generator=draws), torch.arange(48) % 3)


def test_weights_are_free_between_projections_and_the_end_is_a_projection() -> None:
    torch.manual_seed(0)
    model, data = network(), split()
    recorder = _Recorder(data, {"lr": 0.05, "batch_size": 8})
    context = LowRankContext(data=Data(data, data, None, "tiny", 3, "tiny"), device=torch.device("cpu"), train=recorder)
    Lrpet(epochs=1.5, interval=0.5).shape(model, {"0": 2, "3": 3}, context)  # 9 steps, projections at 3, 6, 9
    assert [after for _, after in recorder.ranks] == [8, 8, 2, 8, 8, 2, 8, 8, 2]
    assert [free for free, _ in recorder.ranks] == [8] * 9
    assert all(recorder.momentum_kept)
    second = cast(Tensor, model[3].weight)
    assert int(torch.linalg.matrix_rank(second.detach().flatten(1), rtol=1e-4)) == 3
    assert int(torch.linalg.matrix_rank(cast(Tensor, model[7].weight).detach())) == 3  # a linear layer: left alone


def test_scales_are_those_of_inference() -> None:
    norm = nn.BatchNorm2d(2).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, -1.0]))
        norm.running_var.copy_(torch.tensor([4.0, 0.25]))  # type: ignore[union-attr]
    assert scales(norm).tolist() == pytest.approx([1.0, -2.0], rel=1e-4)
    assert scales(nn.BatchNorm2d(2, affine=False)).tolist() == pytest.approx([1.0, 1.0], rel=1e-4)


RECIPE = {
    "criterion": None,
    "low_rank": {"name": "lrpet", "epochs": 0.5},
    "recovery": ["bn_reestimation", {"name": "finetune", "lr": 0.05}],
    "epochs": 0,
}


@pytest.mark.parametrize("start", ["base", "fresh"])
def test_a_trial_meets_its_target_with_really_thinner_layers_that_save_and_load(
    start: str, digits_bench: Bench, tmp_path: Path
) -> None:
    recipe = Recipe.parse(RECIPE | {"start": start, "target": {"flops_fraction": 0.5}})
    outcome = run_trial(recipe, digits_bench, seed=0)
    assert 0.49 < outcome.validation.flops_fraction <= 0.5
    assert outcome.compressed.factors
    assert outcome.cost.trained_samples == round(0.5 * len(digits_bench.data.train))
    assert sum(p.numel() for p in outcome.model.parameters()) < digits_bench.base.params
    artefact.save(tmp_path / "a", outcome.compressed, Manifest(model=digits_bench.base.spec, recipe=recipe))
    again = artefact.load(tmp_path / "a")
    inputs = digits_bench.data.example_inputs
    assert torch.equal(again(inputs), outcome.model(inputs))


def test_channels_can_be_cut_first(digits_bench: Bench) -> None:
    recipe = Recipe.parse(RECIPE | {"criterion": "l1_norm", "target": {"flops_fraction": 0.3}})
    prepared = prepare(recipe, digits_bench, seed=0)
    assert prepared.compressed.factors
    assert all(f.rank == prepared.amounts.ranks[f.layer] for f in prepared.compressed.factors)
    assert any(len(prepared.kept[g.name]) < g.size for g in digits_bench.base.structure.groups)
    flops = count_flops(prepared.compressed.model, digits_bench.data.example_inputs)
    assert 0.28 < flops / digits_bench.base.flops <= 0.3


def test_a_recipe_that_says_not_how_to_train_is_refused(digits_bench: Bench) -> None:
    recipe = Recipe.parse(RECIPE | {"recovery": ["bn_reestimation"]})
    with pytest.raises(BadRecipe, match="'lrpet' trains the model, but the recipe has no recovery that says how"):
        prepare(recipe, digits_bench, seed=0)
