from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from autoprune.allocation import AllocationContext
from autoprune.artefact import Manifest, load, load_compressed, save
from autoprune.compressed import Implant as ImplantedLayer
from autoprune.compressed import rebuild
from autoprune.cost import count_flops
from autoprune.errors import BadRecipe, NotApplicable, UnreachableTarget, WrongArtefact
from autoprune.export import FORMATS, export
from autoprune.graph import Structure, trace
from autoprune.recipe import Recipe, Target
from autoprune.recovery.reinitialise import Reinitialise
from autoprune.repair import Budget, repair
from autoprune.replacement import Bands, rows_by_layer
from autoprune.replacement._implanted import Implanted
from autoprune.replacement.implant import Implant
from autoprune.rooms import build
from autoprune.trial import Bench, measure, prepare, run_trial

CONVS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "3x3": (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 5, 6)),
    "no padding": (nn.Conv2d(4, 6, 3, bias=False), (2, 4, 5, 6)),
    "stride": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 7, 8)),
    "stride without padding": (nn.Conv2d(4, 6, 3, stride=2), (2, 4, 8, 7)),
    "dilation": (nn.Conv2d(4, 6, 3, padding=1, dilation=2), (2, 4, 7, 8)),
    "unequal": (nn.Conv2d(4, 6, (3, 5), stride=(3, 2), padding=(2, 1), dilation=(1, 2)), (2, 4, 11, 13)),
    "more padding than reach": (nn.Conv2d(4, 6, 3, padding=3), (2, 4, 5, 5)),
    "row": (nn.Conv2d(4, 6, (1, 3), padding=(0, 1)), (2, 4, 4, 6)),
    "same": (nn.Conv2d(4, 6, (3, 5), padding="same", dilation=(2, 1)), (2, 4, 6, 7)),
    "valid": (nn.Conv2d(4, 6, 3, padding="valid"), (2, 4, 6, 7)),
    "reflect": (nn.Conv2d(4, 6, 3, padding=(2, 2), padding_mode="reflect"), (2, 4, 6, 7)),
    "circular": (nn.Conv2d(4, 6, 3, padding=2, padding_mode="circular", stride=2), (2, 4, 6, 7)),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    "conv3d": (nn.Conv3d(4, 6, (1, 3, 1), padding=(0, 1, 0)), (2, 4, 4, 5, 3)),
}


def with_centres_only(conv: nn.Module, rows: list[int]) -> nn.Module:
    """The convolution with all taps of some rows at zero but the middle one."""
    expected = copy.deepcopy(conv)
    weight = cast(torch.Tensor, expected.weight).data
    middle = tuple(slice(n // 2, n // 2 + 1) for n in weight.shape[2:])
    for row in rows:
        tap = weight[row][:, *middle].clone()
        weight[row] = 0
        weight[row][:, *middle] = tap
    return expected


def test_an_implant_is_a_kernel_that_keeps_only_its_centre() -> None:
    """conv(4 -> 6, 3, stride 2, padding 1), kept {0, 3}, implanted {1, 5}: order (0, 1, 3, 5), 80 of 216 weights."""
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
    x = torch.randn(2, 4, 9, 8)
    whole = conv(x)
    cut = nn.Conv2d(4, 4, 3, stride=2, padding=1, bias=False)
    cut.weight.data = conv.weight.data[[0, 1, 3, 5]]
    implanted = Implant().replaced(cut, [1, 3])
    out = implanted(x)
    assert out.shape == (2, 4, *whole.shape[2:])
    assert torch.allclose(out[:, [0, 2]], whole[:, [0, 3]], atol=1e-6)
    assert torch.allclose(out, with_centres_only(cut, [1, 3])(x), atol=1e-6)
    assert sum(p.numel() for p in implanted.parameters()) == 80
    assert sum(p.numel() for p in conv.parameters()) == 216


def test_without_padding_the_implant_crops_one_pixel_per_side() -> None:
    conv, x = nn.Conv2d(4, 6, 3, bias=False), torch.randn(2, 4, 5, 6)
    made = cast(Implanted, Implant().replaced(conv, [0]))
    expected = torch.einsum("bihw,i->bhw", x[:, :, 1:-1, 1:-1], conv.weight.detach()[0, :, 1, 1])
    assert torch.allclose(made(x)[:, 0], expected, atol=1e-6)


@pytest.mark.parametrize("rows", [[0], [1, 2, 5], [0, 1, 2, 3, 4, 5]], ids=["first", "some", "all"])
@pytest.mark.parametrize("kind", CONVS)
def test_every_geometry_gives_what_the_centres_give(kind: str, rows: list[int]) -> None:
    conv, shape = CONVS[kind]
    conv, x = copy.deepcopy(conv).double().eval(), torch.randn(shape, dtype=torch.float64)
    before = {name: value.clone() for name, value in conv.state_dict().items()}
    made = Implant().replaced(conv, rows)
    assert torch.allclose(made(x), with_centres_only(conv, rows)(x), rtol=1e-12, atol=1e-12)
    assert not made.training
    assert all(torch.equal(value, before[name]) for name, value in conv.state_dict().items())
    assert all(p.dtype == torch.float64 for p in made.parameters())


def test_a_zero_implant_gives_nothing_but_the_bias_and_still_learns() -> None:
    conv, x = nn.Conv2d(4, 6, 3, padding=1), torch.randn(2, 4, 5, 5)
    made = cast(Implanted, Implant(init="zero").replaced(conv, [2]))
    assert torch.allclose(made(x)[:, 2], conv.bias[2].expand(2, 5, 5))  # type: ignore[index]
    made(x).square().sum().backward()
    assert made.implant.weight.grad is not None
    assert bool(made.implant.weight.grad.any())


def test_no_random_number_is_drawn() -> None:
    state = torch.get_rng_state()
    Implant().replaced(nn.Conv2d(1, 2, 3, device="meta").to_empty(device="cpu"), [1])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(3, 4),
        nn.Conv2d(3, 4, 1),
        nn.Conv2d(3, 4, 2),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.ConvTranspose2d(3, 4, 3),
    ],
    ids=["linear", "pointwise", "even", "grouped", "transposed"],
)
def test_a_module_that_has_no_cheaper_form_is_refused(module: nn.Module) -> None:
    with pytest.raises(NotApplicable):
        Implant().replaced(module, [0])


@pytest.mark.parametrize("rows", [[], [1, 0], [0, 0], [-1], [6]])
def test_rows_that_are_not_there_are_refused(rows: list[int]) -> None:
    with pytest.raises(ValueError, match=r"rows to implant must rise and lie in 0\.\.5"):
        Implant().replaced(nn.Conv2d(4, 6, 3), rows)


# ---- bands


def chain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 10, 3, padding=1), nn.ReLU(), nn.Conv2d(10, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)
    )


def one_group() -> Structure:
    model = nn.Sequential(nn.Conv2d(3, 10, 3, padding=1), nn.ReLU(), nn.Conv2d(10, 4, 1))
    return trace(model, torch.randn(2, 3, 6, 6))


def path_of(structure: Structure, scores: dict[str, torch.Tensor], allocation: str = "global") -> Any:
    return cast(Any, build("allocation", allocation)).path(AllocationContext.of(scores, structure))


@pytest.mark.parametrize(("fraction", "staying"), [(0.0, 5), (0.2, 6), (0.4, 7), (0.5, 8), (1.0, 10)])
def test_bands_of_ten_units(fraction: float, staying: int) -> None:
    """Scores 1..10, half affected, 0.4 of them implanted: {1, 2, 3} go, {4, 5} are implanted, {6..10} stay.

    With 0.5 of them floor(2.5) = 2 go.
    """
    structure = one_group()
    path = path_of(structure, {"0": torch.arange(1.0, 11.0)})
    bands = Bands(structure, Implant(fraction=fraction), path, structure.sizes)
    counts_G = bands.staying(1.0).astype(np.int64)
    assert counts_G.tolist() == [staying]
    assert bands.whole(counts_G, 1.0) == {0: 5}


def test_a_global_ranking_decides_over_all_groups_and_pointwise_layers_lose_theirs() -> None:
    """18 units, 9 affected, 6 go and 3 are implanted; those of the 1x1 convolution in that band go too."""
    structure = trace(chain(), torch.randn(2, 3, 6, 6))
    scores = {"0": torch.arange(10) * 2.0, "2": torch.arange(8) * 2.0 + 1}
    bands = Bands(structure, Implant(fraction=1 / 3), path_of(structure, scores), structure.sizes)
    counts_G = bands.staying(1.0).astype(np.int64)
    # by score 0 1 2 3 4 5 | 6 7 8 | ...: three of each go, then 6 and 8 are implanted and 7, pointwise, goes
    assert counts_G.tolist() == [7, 4]
    assert bands.whole(counts_G, 1.0) == {0: 5}


def test_change_is_what_the_exchanged_layers_save() -> None:
    structure = trace(chain(), torch.randn(2, 3, 6, 6))
    bands = Bands(structure, Implant(), path_of(structure, {}, "uniform"), structure.sizes)
    flops, params = bands.change(np.array([7, 4]), {0: 5})
    assert params == pytest.approx(-2 * 3 * 8)
    assert flops == pytest.approx(2 * 36 * params)


def test_units_of_earlier_cuts_count_among_the_affected() -> None:
    """Of ten units two went before; at strength 1 four of the eight left are affected, six in all; half of six go."""
    structure = one_group().restrict({"0": list(range(8))})
    path = path_of(structure, {"0": torch.arange(8.0)})
    bands = Bands(structure, Implant(fraction=0.5), path, np.array([10]))
    assert bands.staying(1.0).tolist() == [7]


@pytest.mark.parametrize("round_to", [1, 4])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5])
def test_a_target_is_met_within_a_unit(fraction: float, allocation: str, round_to: int) -> None:
    structure = trace(chain(), torch.randn(2, 3, 6, 6), round_to=round_to)
    generator = torch.Generator().manual_seed(0)
    scores = {g.name: torch.rand(g.size, generator=generator) for g in structure.groups}
    budget = Budget(flops=structure.flops(), params=structure.params(), target=Target(flops_fraction=0.5))
    path = path_of(structure, scores, allocation)
    found = repair(structure, budget, path=path, replacement=Implant(fraction=fraction))
    assert 0.3 < found.flops_fraction <= 0.5
    if fraction == 0:
        assert not found.implanted
        assert found == repair(structure, budget, path=path)


def test_implants_alone_cannot_remove_what_they_have_to() -> None:
    structure = trace(nn.Sequential(nn.Conv2d(3, 10, 3), nn.ReLU(), nn.Conv2d(10, 4, 1)), torch.randn(2, 3, 6, 6))
    budget = Budget(flops=structure.flops(), params=structure.params(), target=Target(flops_fraction=0.1))
    path = path_of(structure, {"0": torch.rand(10)})
    with pytest.raises(UnreachableTarget, match="replace fewer of the affected units"):
        repair(structure, budget, path=path, replacement=Implant(fraction=1))


def test_a_unit_of_a_stream_is_implanted_in_its_larger_kernels_only() -> None:
    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 1)
            self.head = nn.Conv2d(6, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return cast(torch.Tensor, self.head(torch.relu(self.one(x) + self.two(x))))

    structure = trace(Stream(), torch.randn(2, 3, 5, 5))
    (group,) = structure.groups
    assert rows_by_layer(structure, Implant(), {group.name: [1, 4]}) == {"one": [1, 4]}
    assert rows_by_layer(structure, Implant(), {}) == {}


# ---- trials


def recipe(**parts: object) -> Recipe:
    return Recipe.parse(
        {"criterion": "l1_norm", "allocation": "global", "replacement": {"name": "implant", "fraction": 0.4}}
        | {"recovery": ["bn_reestimation", {"name": "finetune", "lr": 0.02}], "epochs": 0, **parts}
    )


@pytest.mark.parametrize("schedule", ["one_shot", {"name": "iterative", "count": 2, "epochs_between": 0.05}])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_a_trial_meets_its_target_by_counting(allocation: str, schedule: object, digits_bench: Bench) -> None:
    prepared = prepare(recipe(allocation=allocation, schedule=schedule), digits_bench, seed=0)
    compressed = prepared.compressed
    measured = measure(compressed.model, digits_bench)
    assert measured.flops == round(prepared.amounts.flops_fraction * digits_bench.base.flops)
    assert measured.params == round(prepared.amounts.params_fraction * digits_bench.base.params)
    assert 0.47 < measured.flops_fraction <= 0.5
    assert compressed.implants
    assert any("implant: " in note for note in prepared.notes)


def test_the_model_is_the_cut_one_with_single_taps(digits_bench: Bench) -> None:
    """Against a model cut without implants: the same kept units, all taps but the middle ones of the rows at zero."""
    prepared = prepare(recipe(recovery=[]), digits_bench, seed=0)
    structure = digits_bench.base.structure
    expected = structure.cut(digits_bench.model, prepared.kept)
    for item in prepared.compressed.implants:
        conv = expected.get_submodule(item.layer)
        conv.load_state_dict(with_centres_only(conv, list(item.rows)).state_dict())
    x = digits_bench.data.example_inputs
    with torch.no_grad():
        assert torch.allclose(prepared.compressed.model(x), expected(x), atol=1e-4)
    less = count_flops(prepared.compressed.model, x)
    assert less < count_flops(expected, x)


def test_lowest_scores_go_and_the_next_ones_are_implanted(digits_bench: Bench) -> None:
    prepared = prepare(recipe(recovery=[]), digits_bench, seed=0)
    structure, amounts = digits_bench.base.structure, prepared.amounts
    assert set(amounts.implanted) <= {g.name for g in structure.groups}
    affected = sum(g.size - amounts.counts[g.name] + amounts.implanted.get(g.name, 0) for g in structure.groups)
    removed = sum(g.size - amounts.counts[g.name] for g in structure.groups)
    assert sum(amounts.implanted.values()) > 0
    # what topping up gave back makes a unit or two of difference
    assert abs(removed - 0.6 * affected) <= len(structure.groups)


def test_training_changes_both_kinds_of_kernels_and_an_artefact_brings_all_back(
    digits_bench: Bench, tmp_path: Path
) -> None:
    outcome = run_trial(recipe(epochs=0.2), digits_bench, seed=0)
    fresh = prepare(recipe(), digits_bench, seed=0).compressed.model
    layer = outcome.compressed.implants[0].layer
    for part in ("kept", "implant"):
        now = outcome.model.get_submodule(layer).get_submodule(part)
        before = fresh.get_submodule(layer).get_submodule(part)
        assert not torch.equal(cast(Any, now).weight, cast(Any, before).weight)
    save(tmp_path, outcome.compressed, Manifest(model=digits_bench.base.spec, recipe=outcome.recipe))
    again = load_compressed(tmp_path)
    x = digits_bench.data.example_inputs
    with torch.no_grad():
        assert torch.equal(again.model(x), outcome.model(x))
    assert again.implants == outcome.compressed.implants
    assert count_flops(load(tmp_path), x) == count_flops(outcome.model, x)


def test_rows_that_do_not_fit_the_base_model_are_named(digits_bench: Bench, tmp_path: Path) -> None:
    compressed = prepare(recipe(recovery=[]), digits_bench, seed=0).compressed
    save(tmp_path, compressed, Manifest(model=digits_bench.base.spec, recipe=recipe()))
    manifest = tmp_path / "autoprune.json"
    row = compressed.implants[0].rows[-1]
    text = manifest.read_text().replace(f"    {row}\n", "    9999\n", 1)
    manifest.write_text(text)
    with pytest.raises(WrongArtefact, match="implanted layer does not fit the base model"):
        load(tmp_path)


def test_flops_are_those_of_small_kernels() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, bias=False))
    x = torch.randn(1, 4, 5, 5)
    item = ImplantedLayer(layer="0", method=Implant().config(), rows=(1, 2))
    structure = trace(nn.Sequential(*model, nn.ReLU(), nn.Conv2d(6, 2, 1)), x)
    whole = nn.Sequential(*copy.deepcopy(model), nn.ReLU(), nn.Conv2d(6, 2, 1))
    rebuilt = rebuild(whole, structure.selection(None), (), (item,))
    with FlopCounterMode(display=False) as counter:
        rebuilt(x)
    assert counter.get_total_flops() == 2 * 25 * (4 * 4 * 9 + 2 * 4 + 6 * 2)


def test_a_target_that_is_met_already_changes_nothing(digits_bench: Bench) -> None:
    prepared = prepare(recipe(recovery=[], target={"flops_fraction": 1.0}), digits_bench, seed=0)
    x = digits_bench.data.example_inputs
    with torch.no_grad():
        assert torch.equal(prepared.compressed.model(x), digits_bench.model(x))
    assert not prepared.compressed.implants


@pytest.mark.parametrize("format", FORMATS)
def test_implants_go_out_as_they_are(format: str, digits_bench: Bench, tmp_path: Path) -> None:
    compressed = prepare(recipe(recovery=[]), digits_bench, seed=0).compressed
    save(tmp_path, compressed, Manifest(model=digits_bench.base.spec, recipe=recipe()))
    made = export(tmp_path, format, digits_bench.data.example_inputs)
    assert made.largest_difference <= made.tolerance


def test_new_weights_for_a_model_with_implants(digits_bench: Bench) -> None:
    """What trains an architecture from scratch finds nothing of the old weights in it."""
    model = prepare(recipe(recovery=[]), digits_bench, seed=0).compressed.model
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.ndim > 1}
    Reinitialise().recover(model, digits_bench.recovery_context(1), 0.0)
    after = dict(model.named_parameters())
    assert [name for name in before if "implant" in name]
    assert not [name for name, old in before.items() if torch.equal(old, after[name])]


@pytest.mark.parametrize(
    "parts",
    [{"low_rank": "svd"}, {"criterion": None, "depth": "sr_init"}],
    ids=["low_rank", "no criterion"],
)
def test_recipes_that_cannot_be_are_refused(parts: dict[str, object]) -> None:
    with pytest.raises(BadRecipe, match="it needs a criterion, and low_rank: null"):
        recipe(**parts)
