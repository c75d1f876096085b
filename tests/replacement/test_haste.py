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
from autoprune.dynamic import as_dense, dynamic_cost, tallied
from autoprune.errors import BadRecipe, NotApplicable, UnreachableTarget
from autoprune.recipe import Recipe
from autoprune.replacement._hashed import Hashed, hash_codes, hyperplanes, overhead
from autoprune.replacement.haste import Haste
from autoprune.trial import Bench, metrics_of, run_trial


def hashed(conv: nn.Conv2d, **changes: Any) -> Hashed:
    settings: dict[str, Any] = {"planes": 14, "tile": 8, "zeros": 2 / 3, "projection": "ternary", "seed": 0}
    return Hashed(conv, **(settings | changes)).eval()


def conv(*arguments: Any, **keywords: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(*arguments, **keywords).double().eval()


def test_one_patch_by_hand() -> None:
    """Weights 1, 2, 3 over channels [1, 0], [3, 2], [5, -2]: centred [-2, 0], [0, 2], [2, -2]."""
    layer = conv(3, 1, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1))
    x = torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, -2.0]], dtype=torch.float64).view(1, 3, 1, 2)
    values = x[0].flatten(1)
    both, second = torch.eye(2, dtype=torch.float64), torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    assert hash_codes(values, both).tolist() == [0, 2, 1]
    assert hash_codes(values, second).tolist() == [0, 1, 0]
    for planes, expected, buckets in ((both, [22.0, -2.0], 3), (second, [18.0, 0.0], 2)):
        made = hashed(layer, planes=planes.shape[1], tile=4)
        made.planes = torch.zeros(4, 4, planes.shape[1], dtype=torch.float64)
        made.planes[0, :2] = planes
        found = made.merged(x)
        assert found.outputs.flatten().tolist() == pytest.approx(expected)
        assert found.buckets.flatten().tolist() == [buckets]


def test_channels_that_repeat_are_merged_without_error() -> None:
    layer, draws = conv(7, 5, 3), torch.Generator().manual_seed(0)
    distinct = torch.randn(2, 4, 6, 6, dtype=torch.float64, generator=draws)
    x = distinct[:, [0, 1, 2, 3, 0, 1, 2]]
    found = hashed(layer, planes=24, tile=4).merged(x)
    assert found.buckets.flatten().tolist() == [4.0, 4.0]
    torch.testing.assert_close(found.outputs, layer(x), rtol=0, atol=1e-12)


def test_no_hyperplane_is_one_bucket_and_distinct_codes_are_the_plain_convolution() -> None:
    layer, x = conv(6, 4, 3, padding=1), torch.randn(2, 6, 9, 9, dtype=torch.float64)
    one = hashed(layer, planes=0, tile=4)
    mean = x.mean(dim=1, keepdim=True)
    expected = nn.functional.conv2d(mean, layer.weight.sum(dim=1, keepdim=True), layer.bias, padding=1)
    torch.testing.assert_close(one(x), expected, rtol=0, atol=1e-12)
    assert bool((one.merged(x).buckets == 1).all())
    many = hashed(layer, planes=32, zeros=0.0, projection="gaussian")
    assert bool((many.merged(x).buckets == 6).all())
    torch.testing.assert_close(many(x), layer(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 1, "same"])
@pytest.mark.parametrize("size", [(7, 9), (16, 5), (3, 3)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_tiles_cover_every_geometry_exactly(stride: int, padding: Any, size: tuple[int, int], dilation: int) -> None:
    if (padding == "same" and stride == 2) or (padding == 0 and dilation == 2 and min(size) < 5):
        pytest.skip("torch has no such convolution")
    layer = conv(5, 3, 3, stride=stride, padding=padding, dilation=dilation)
    x = torch.randn(2, 5, *size, dtype=torch.float64)
    torch.testing.assert_close(hashed(layer, planes=32, zeros=0.0, projection="gaussian", tile=4)(x), layer(x))


def test_a_map_added_to_all_channels_and_a_scale_change_no_code() -> None:
    layer = conv(8, 4, 3, bias=False)
    made = hashed(layer, planes=4)
    x, shift = torch.randn(2, 8, 8, 8, dtype=torch.float64), torch.randn(2, 1, 8, 8, dtype=torch.float64)
    before = made.merged(x)
    assert torch.equal(made.merged(x + shift).buckets, before.buckets)
    assert torch.equal(made.merged(4 * x).buckets, before.buckets)
    assert torch.equal(made(4 * x), 4 * made(x))
    assert float(before.buckets.min()) < 8


def test_a_tile_depends_on_its_own_window_and_sample_only() -> None:
    made = hashed(conv(6, 4, 3, padding=1), planes=3, tile=4)
    x = torch.randn(2, 6, 12, 12, dtype=torch.float64)
    other = x.clone()
    other[0, :, 6:] += torch.randn(6, 6, 12, dtype=torch.float64)  # rows from 6 on: tile 0 reads rows up to 4
    other[1] = 0.0
    assert torch.equal(made(other)[0, :, :4], made(x)[0, :, :4])
    assert not torch.equal(made(other)[0, :, 4:], made(x)[0, :, 4:])


def test_training_and_the_switch_are_the_plain_convolution_and_the_state_is_its_own() -> None:
    layer, x = conv(6, 4, 3), torch.randn(1, 6, 8, 8, dtype=torch.float64)
    made = hashed(layer, planes=1)
    assert not torch.allclose(made(x), layer(x))
    assert torch.equal(made.train()(x), layer(x))
    made.eval()
    with as_dense(made):
        assert torch.equal(made(x), layer(x))
    assert made.enabled
    assert list(made.state_dict()) == list(layer.state_dict())
    assert made.weight is layer.weight
    assert torch.equal(hashed(layer).planes, hashed(layer).planes)
    assert not torch.equal(hashed(layer).planes, hashed(layer, seed=1).planes)


def test_hyperplanes_are_ternary_and_touch_no_global_randomness() -> None:
    before = torch.get_rng_state()
    drawn = hyperplanes(1000, 20, 2 / 3, "ternary", 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert set(drawn.unique().tolist()) == {-1.0, 0.0, 1.0}
    assert float((drawn == 0).float().mean()) == pytest.approx(2 / 3, abs=0.01)
    assert float(drawn.mean()) == pytest.approx(0.0, abs=0.01)


def test_the_cost_of_one_tile_by_hand() -> None:
    """64 to 64 channels, 3x3, a full tile of 8: 30 buckets leave 1,105,920 of 2,359,296 MACs."""
    planes = torch.zeros(10, 10, 14)
    planes[0, 0, :5] = 1.0
    thirty = torch.tensor([30.0])
    assert float(overhead(64, 64, 9, thirty, planes)[0]) == 12_800 + 19_584 + 3_400 + 3_000 + 64 * 5
    assert float(overhead(64, 64, 9, thirty, torch.zeros(10, 10, 0))[0]) == 19_584 + 3_400 + 3_000
    assert 2 * 9 * 30 * 64 * 64 == 2 * 1_105_920


def test_flops_depend_on_the_input_and_are_counted_by_sample() -> None:
    model = nn.Sequential(conv(16, 8, 3, padding=1, bias=False), nn.Conv2d(8, 2, 1).double())
    plain = count_flops(model, torch.zeros(1, 16, 12, 12, dtype=torch.float64))
    ((name, method),) = Haste(planes=6).layers(model)
    assert name == "0"
    made = nn.Sequential(method.replaced(model[0], range(8)), model[1])
    x = torch.randn(3, 16, 12, 12, dtype=torch.float64)
    x[1] = x[1, :1]  # all channels alike
    assert count_flops(made, x[:1]) == plain  # dense FLOPs stay as they are
    with tallied(made) as tallies:
        made(x)
    tally = tallies["0"]
    assert tally.dense == 2 * 9 * 16 * 8 * 144
    products = torch.cat(tally.products)
    # one bucket in each of the four tiles, of 64, 32, 32 and 16 outputs
    assert float(products[1]) == 2 * 9 * 1 * 8 * 144
    assert len(products.unique()) == 3
    cost = dynamic_cost(tallies, plain)
    assert cost is not None
    assert cost.mean > cost.products
    assert cost.products == pytest.approx(float(products.mean()) + 2 * 8 * 2 * 144)
    assert cost.spread > 0
    assert 1 / 16 < cost.share < 1
    made(x)
    assert len(tally.flops) == 1  # counted only while asked for
    assert dynamic_cost({}, plain) is None


def test_which_layers_are_exchanged() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 3, groups=2), nn.Conv2d(16, 32, 3),
        nn.Conv2d(32, 16, (1, 3)),
    )  # fmt: skip
    found = Haste(seed=5).layers(model)
    assert [name for name, _ in found] == ["3", "4"]
    assert [cast(Haste, method).seed for _, method in found] == [5, 6]
    with pytest.raises(NotApplicable, match="ungrouped Conv2d"):
        Haste().replaced(model[2], range(16))


def test_large_batches_go_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    made, x = hashed(conv(6, 4, 3), planes=3), torch.randn(5, 6, 8, 8, dtype=torch.float64)
    whole = made(x)
    monkeypatch.setattr("autoprune.replacement._hashed._CHUNK", 1)
    assert torch.allclose(made(x), whole, atol=1e-12)


RECIPE = {
    "criterion": None,
    "target": {"flops_fraction": 1.0},
    "replacement": {"name": "haste", "planes": 4},
    "recovery": [],
    "epochs": 0,
}


def test_a_trial_reports_measured_flops_apart_from_dense_ones_and_its_model_loads(
    digits_bench: Bench, tmp_path: Path
) -> None:
    outcome = run_trial(Recipe.parse(RECIPE), digits_bench, seed=0)
    found = metrics_of(outcome.validation)
    assert found["flops_fraction"] == found["params_fraction"] == 1.0
    assert found["dynamic_flops_fraction"] != 1.0
    assert 0 < found["dynamic_flops_without_overhead"] < found["flops"]
    assert found["dynamic_flops_without_overhead"] < found["dynamic_flops"]
    assert found["dynamic_flops_spread"] > 0
    assert outcome.compressed.implants
    artefact.save(tmp_path / "a", outcome.compressed, Manifest(model=digits_bench.base.spec, recipe=outcome.recipe))
    again = artefact.load(tmp_path / "a")
    inputs = digits_bench.data.example_inputs
    assert torch.equal(again(inputs), outcome.model(inputs))
    plain = copy.deepcopy(digits_bench.model)
    with as_dense(again):
        torch.testing.assert_close(again(inputs), plain(inputs))
    assert not any(isinstance(m, Hashed) for m in digits_bench.model.modules())


def test_a_model_without_such_layers_costs_its_dense_flops(digits_bench: Bench) -> None:
    from autoprune.trial import measure

    found = metrics_of(measure(digits_bench.model, digits_bench, samples=8))
    assert found["dynamic_flops"] == found["flops"]
    assert "channel_share" not in found


def test_it_goes_with_a_cut_low_rank_and_finetuning(digits_bench: Bench) -> None:
    recipe = Recipe.parse(
        RECIPE | {"criterion": "l1_norm", "low_rank": {"name": "svd", "scheme": "channel"}, "epochs": 0.1,
                  "target": {"flops_fraction": 0.6}, "recovery": ["bn_reestimation", "finetune"]}
    )  # fmt: skip
    outcome = run_trial(recipe, digits_bench, seed=0)
    assert outcome.validation.flops_fraction <= 0.6
    assert outcome.compressed.factors
    assert outcome.compressed.implants


def test_alone_it_meets_no_target_of_dense_flops(digits_bench: Bench) -> None:
    with pytest.raises(UnreachableTarget, match="haste alone leaves dense FLOPs as they are"):
        run_trial(Recipe.parse(RECIPE | {"target": {"flops_fraction": 0.5}}), digits_bench, seed=0)
    with pytest.raises(BadRecipe, match="nothing to do"):
        Recipe.parse(RECIPE | {"replacement": None})


def test_values_of_every_bucket_share_one_mean() -> None:
    values = torch.tensor([[1.0, 5.0], [3.0, 7.0], [-9.0, -9.0]])
    codes: Tensor = hash_codes(values, torch.ones(2, 1))
    assert codes.tolist() == [1, 1, 0]


def test_it_exports_for_any_number_of_samples() -> None:
    made, x = hashed(conv(16, 4, 3, padding=1), planes=3, tile=4), torch.randn(2, 16, 7, 7, dtype=torch.float64)
    program = torch.export.export(made, (x,), dynamic_shapes={"x": {0: torch.export.Dim("n")}})
    more = torch.randn(5, 16, 7, 7, dtype=torch.float64)
    torch.testing.assert_close(program.module()(more), made(more))
