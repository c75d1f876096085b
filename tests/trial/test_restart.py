"""Architectures trained from scratch: of a masked model the connections are the architecture."""

from __future__ import annotations

import math

import torch

from autoprune.masks import count
from autoprune.recipe import Recipe
from autoprune.seeds import derive_seed
from autoprune.trial import Bench, prepare, restart, run_trial

SPARSE = {"criterion": None, "target": {"flops_fraction": 1.0}, "sparsity": {"name": "magnitude", "sparsity": 0.8}}
SCRATCH = [
    "reinitialise",
    {"name": "scratch", "by": "epochs", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "batch_size": 64},
]


def test_zeros_stay_zero_through_training_with_momentum_and_decay(digits_bench: Bench) -> None:
    """Ten steps at least: fixed zeros, and new values wherever the mask lets a weight be."""
    compressed = prepare(Recipe.parse({**SPARSE, "recovery": ["bn_reestimation"]}), digits_bench, seed=0).compressed
    before = {name: compressed.model.get_parameter(name).detach().clone() for name in compressed.masks}
    recipe = Recipe.parse({"recovery": SCRATCH, "epochs": 1.0})
    spent = restart(compressed, recipe, digits_bench, seed=derive_seed(0, "scratch"))
    assert spent.trained_samples / 64 >= 10
    assert count(compressed.masks) == round(0.2 * sum(mask.numel() for mask in compressed.masks.values()))
    for name, mask in compressed.masks.items():
        weight = compressed.model.get_parameter(name).detach()
        assert weight[~mask].eq(0).all()
        assert weight[mask].ne(0).all()
        assert weight[mask].ne(before[name][mask]).all()


def test_a_recipe_from_scratch_masks_by_the_trained_weights_and_then_forgets_them(digits_bench: Bench) -> None:
    sparse = prepare(Recipe.parse({**SPARSE, "recovery": ["bn_reestimation"]}), digits_bench, seed=0).compressed
    found = run_trial(Recipe.parse({**SPARSE, "recovery": SCRATCH, "epochs": 0.5}), digits_bench, seed=0).compressed
    assert all(torch.equal(found.masks[name], mask) for name, mask in sparse.masks.items())
    for name, mask in found.masks.items():
        weight = found.model.get_parameter(name).detach()
        assert weight[~mask].eq(0).all()
        assert weight[mask].ne(sparse.model.get_parameter(name).detach()[mask]).all()


def test_new_weights_are_dense_where_there_are_no_masks(digits_bench: Bench) -> None:
    recipe = Recipe.parse({"recovery": SCRATCH, "epochs": 0})
    compressed = prepare(recipe, digits_bench, seed=0).compressed
    conv = compressed.model.get_parameter("layer3.conv2.weight").detach()
    expected = math.sqrt(1 / (3 * 9 * conv.shape[1]))
    assert abs(float(conv.std()) / expected - 1) < 0.05
