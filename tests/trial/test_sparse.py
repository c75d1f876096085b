"""Recipes that zero single weights, from the recipe to the artefact in a fresh process."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from autoprune import artefact, presets, rooms
from autoprune.api import compress
from autoprune.artefact import Manifest
from autoprune.errors import BadRecipe, UnreachableTarget, WrongArtefact
from autoprune.masks import count, prunable, size
from autoprune.recipe import Recipe
from autoprune.seeds import derive_seed
from autoprune.specs import ModelSpec
from autoprune.trial import Bench, measure, metrics_of, prepare, run_trial, train_compressed

SPARSE = [name for name in presets.names() if presets.load(name).sparsity is not None]
QUICK = {"epochs": 0.1, "epochs_between": 0.1, "warmup_epochs": 0.1, "rounds": 2, "interval": 2}


def recipe(name: str, **changes: Any) -> Recipe:
    known = rooms.build("sparsity", name).config()
    quick = {key: value for key, value in QUICK.items() if key in known}
    plain = {"criterion": None, "target": {"flops_fraction": 1.0}, "recovery": [{"name": "finetune", "lr": 0.05}]}
    return Recipe.parse(plain | {"sparsity": {"name": name, "sparsity": 0.8} | quick, "epochs": 0.25} | changes)


def test_every_method_but_the_plain_baseline_has_a_preset_and_every_sparse_preset_leaves_flops_alone() -> None:
    assert set(rooms.names("sparsity")) - {"magnitude"} == set(SPARSE)
    for name in SPARSE:
        chosen = presets.load(name)
        assert chosen.sparsity is not None
        assert chosen.sparsity.name == name
        assert chosen.target.is_whole


@pytest.mark.parametrize("name", rooms.names("sparsity"))
def test_a_trial_measures_what_it_zeroed(name: str, digits_bench: Bench) -> None:
    outcome = run_trial(recipe(name), digits_bench, seed=0)
    found, model = outcome.validation, outcome.model
    masked = {n: m for n, m in outcome.compressed.masks.items() if n in prunable(model)}
    zeros = size(masked) - count(masked)
    assert found.sparsity >= zeros / size(prunable(model)) - 1e-9
    assert 0.7 < found.sparsity < 0.85
    assert found.flops == digits_bench.base.flops
    assert found.flops_fraction == 1.0
    assert 0.1 < found.sparse_flops_fraction < 0.6
    assert found.sparse_flops == round(found.sparse_flops_fraction * digits_bench.base.flops)
    assert {"sparsity", "sparse_flops", "sparse_flops_fraction"} <= set(metrics_of(found))
    assert all(not bool(model.get_parameter(n).detach()[~m].any()) for n, m in outcome.compressed.masks.items())


def test_a_dense_model_has_as_many_sparse_flops_as_flops(digits_bench: Bench) -> None:
    found = measure(digits_bench.model, digits_bench)
    assert found.sparse_flops == found.flops
    assert found.sparsity == 0.0


def test_training_in_the_preparation_is_counted(digits_bench: Bench) -> None:
    prepared = prepare(recipe("han_2015"), digits_bench, seed=0)
    assert prepared.cost.trained_samples == round(0.1 * len(digits_bench.data.train))
    scored = prepare(recipe("snip"), digits_bench, seed=0)
    assert scored.cost.trained_samples == 0
    assert scored.cost.forward_samples == 128


def test_channels_ranks_and_single_weights_in_one_recipe(digits_bench: Bench) -> None:
    chosen = recipe(
        "magnitude", criterion="l1_norm", low_rank={"name": "svd", "rank_fraction": 0.5}, target={"flops_fraction": 0.4}
    )
    outcome = run_trial(chosen, digits_bench, seed=0)
    assert outcome.compressed.factors
    assert 0.35 < outcome.validation.flops_fraction <= 0.4
    assert outcome.validation.sparsity == pytest.approx(0.8, abs=1e-3)
    assert outcome.validation.sparse_flops_fraction < 0.5 * outcome.validation.flops_fraction


def test_rungs_go_on_from_the_artefact_as_they_would_in_memory(digits_bench: Bench, tmp_path: Path) -> None:
    chosen = recipe("rigl")
    compressed = prepare(chosen, digits_bench, seed=0).compressed
    spec = ModelSpec(name="digits_resnet", arguments={"num_classes": 10})
    artefact.save(tmp_path, compressed, Manifest(model=spec, recipe=chosen.plain()))
    loaded = artefact.load_compressed(tmp_path)
    assert all(torch.equal(loaded.masks[n], m) for n, m in compressed.masks.items())
    seed = derive_seed(0, "rung", 1)
    here, _ = train_compressed(compressed, chosen, digits_bench, seed, 0.5)
    there, _ = train_compressed(loaded, chosen, digits_bench, seed, 0.5)
    assert all(torch.equal(here.masks[n], there.masks[n]) for n in here.masks)
    weights = zip(here.model.parameters(), there.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)
    # RigL moved them, and kept their number
    assert any(not torch.equal(here.masks[n], loaded.masks[n]) for n in here.masks)
    assert count(here.masks) == count(loaded.masks)


@pytest.fixture(scope="module")
def saved(digits_bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sparse")
    chosen = recipe("nn_relief")
    outcome = run_trial(chosen, digits_bench, seed=0)
    spec = ModelSpec(name="digits_resnet", arguments={"num_classes": 10})
    artefact.save(folder, outcome.compressed, Manifest(model=spec, recipe=chosen.plain()))
    return folder


def test_a_fresh_process_has_exactly_the_same_zeros(saved: Path) -> None:
    code = (
        "import sys, json, hashlib, autoprune; m = autoprune.load(sys.argv[1]);"
        "zeros = lambda p: hashlib.sha256((p == 0).numpy().tobytes()).hexdigest();"
        "print(json.dumps({n: zeros(p) for n, p in m.named_parameters()}))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(saved)], capture_output=True, check=True, text=True)
    here = artefact.load_compressed(saved)
    expected = {n: hashlib.sha256((p == 0).numpy().tobytes()).hexdigest() for n, p in here.model.named_parameters()}
    assert json.loads(done.stdout) == expected
    assert here.masks
    assert all(not bool(here.model.get_parameter(n).detach()[~m].any()) for n, m in here.masks.items())


def test_masks_are_small_and_say_how_much_stays(saved: Path) -> None:
    from safetensors.torch import load_file

    manifest = artefact.read_manifest(saved)
    stored = load_file(saved / "model.safetensors")
    for name, kept in manifest.masked.items():
        weight, packed = stored[name], stored[f"autoprune.mask.{name}"]
        assert packed.dtype == torch.uint8
        assert len(packed) == -(-weight.numel() // 8)
        assert int((weight != 0).sum()) <= kept < weight.numel() or kept == weight.numel()


def test_weights_that_are_no_zeros_where_their_mask_says_so_are_refused(saved: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    stored = load_file(saved / "model.safetensors")
    name = "layer3.conv1.weight"
    stored[name] = torch.ones_like(stored[name])
    save_file(stored, tmp_path / "model.safetensors")
    manifest = json.loads((saved / "autoprune.json").read_text())
    manifest["weights_sha256"] = artefact._sha256(tmp_path / "model.safetensors")
    (tmp_path / "autoprune.json").write_text(json.dumps(manifest))
    (tmp_path / "recipe.yaml").write_text((saved / "recipe.yaml").read_text())
    with pytest.raises(WrongArtefact, match=f"{name} is not zero where its mask says so"):
        artefact.load(tmp_path)


def test_sparsity_alone_cannot_meet_a_target_of_dense_flops(digits_bench: Bench) -> None:
    with pytest.raises(UnreachableTarget, match="leaves FLOPs and parameters of dense kernels as they are"):
        prepare(recipe("magnitude").with_target(flops_fraction=0.5), digits_bench, seed=0)


def test_a_method_that_trains_needs_a_recovery_that_says_how(digits_bench: Bench) -> None:
    with pytest.raises(BadRecipe, match="'weightmom' trains the model, but the recipe has no recovery that says how"):
        prepare(recipe("weightmom", recovery=[]), digits_bench, seed=0)


def test_a_model_without_such_weights_is_refused(digits_bench: Bench) -> None:
    from autoprune.trial.shaping import sparsified

    with pytest.raises(BadRecipe, match="BatchNorm1d has no convolution or linear layer whose weights could become"):
        sparsified(torch.nn.BatchNorm1d(3), recipe("magnitude"), digits_bench, 0)


def test_the_sparsity_of_a_recipe_is_changed_by_its_own_rules() -> None:
    changed = recipe("snip").with_sparsity(0.5).sparsity
    assert changed is not None
    assert changed.sparsity == 0.5
    with pytest.raises(BadRecipe, match=r"Snip\.sparsity must be from 0 to 0\.999, got 1"):
        recipe("snip").with_sparsity(1.0)
    with pytest.raises(
        BadRecipe, match="the recipe l1_filters zeroes no single weights; its `sparsity` must be one of"
    ):
        presets.load("l1_filters").with_sparsity(0.9)


def test_one_call_from_python(digits_bench: Bench) -> None:
    chosen = recipe("magnitude", epochs=0)
    base, data = digits_bench.base, digits_bench.data
    outcome = compress(base, data, chosen, sparsity=0.6, settings=digits_bench.settings)
    assert outcome.metrics["sparsity"] == pytest.approx(0.6, abs=1e-4)
    assert outcome.metrics["flops_fraction"] == 1.0
