from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from autoprune.cost import count_flops
from autoprune.errors import BadInput
from autoprune.graph import trace
from autoprune.models import build_model
from autoprune.report.bottlenecks import Found, shares, widened_studies
from autoprune.study.config import StudyConfig, load
from autoprune.trial import Bench


def three_layers() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 2)
    )


def found_of(bench: Bench, config: StudyConfig, scores: Mapping[str, torch.Tensor]) -> Found:
    """Return what half of the units of the digits network, ranked by these scores, make of its groups."""
    found = shares(bench.base.structure, scores, 0.5, 0.5)
    return Found(config=config, base=bench.base, shares=found, shape=(1, 8, 8), num_classes=10)


def test_what_one_ranking_takes_by_hand() -> None:
    """40 units, half go: 2 of the first group, 5 of the second and 13 of the third; below a quarter is a bottleneck."""
    structure = trace(three_layers(), torch.randn(2, 4))
    scores = {
        "0": torch.cat([torch.zeros(2), torch.full((8,), 9.0)]),
        "2": torch.cat([torch.zeros(5), torch.full((5,), 9.0)]),
        "4": torch.cat([torch.zeros(13), torch.full((7,), 9.0)]),
    }
    found = shares(structure, scores, 0.5, 0.5)
    assert [s.removed for s in found] == [2, 5, 13]
    assert [s.bottleneck for s in found] == [True, False, False]
    assert found[0].removed_fraction == 0.2
    assert not any(s.bottleneck for s in shares(structure, scores, 0.5, 0.3))


def test_one_unit_in_twenty_stays_and_others_go_instead() -> None:
    structure = trace(three_layers(), torch.randn(2, 4))
    scores = {"0": torch.zeros(10), "2": torch.ones(10), "4": torch.full((20,), 2.0)}
    found = shares(structure, scores, 0.5, 0.5)
    assert [s.removed for s in found] == [9, 9, 2]
    assert [s.removed for s in shares(structure, scores, 0.99, 0.5)] == [9, 9, 19]


@pytest.mark.parametrize("wrong", [0.0, 1.0])
def test_fractions_lie_between_none_and_all(wrong: float) -> None:
    structure = trace(three_layers(), torch.randn(2, 4))
    scores = {"0": torch.zeros(10)}
    with pytest.raises(BadInput, match="removed_fraction must lie between 0 and 1"):
        shares(structure, scores, wrong, 0.5)
    with pytest.raises(BadInput, match="threshold must lie between 0 and 1"):
        shares(structure, scores, 0.5, wrong)


def test_studies_of_wider_models_ask_for_the_same_flops(digits_bench: Bench, tmp_path: Path) -> None:
    config = load("digits").config
    structure = digits_bench.base.structure
    ranked = {g.name: torch.full((g.size,), float(i)) for i, g in enumerate(structure.groups)}
    found = found_of(digits_bench, config, ranked)
    narrow = [s.group for s in found.shares if s.bottleneck]
    assert narrow == ["layer3.conv2"]
    files = widened_studies(found, tmp_path, factor=2.0, uniform=1.1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits-uniform.yaml", "digits-widened.yaml"]
    for kind, path in files.items():
        wide = load(path).config
        model = build_model(wide.model, 10)
        flops = count_flops(model, torch.zeros(1, 1, 8, 8))
        assert flops > digits_bench.base.flops
        for target, before in zip(wide.targets, config.targets, strict=True):
            assert target.flops_fraction is not None
            assert before.flops_fraction is not None
            assert target.flops_fraction * flops == pytest.approx(before.flops_fraction * digits_bench.base.flops)
        assert wide.name == f"digits-{kind}"
    conv = build_model(load(files["widened"]).config.model, 10).get_submodule("layer3.conv2")
    assert isinstance(conv, nn.Conv2d)
    assert (conv.in_channels, conv.out_channels) == (64, 128)


def test_a_target_of_latency_is_refused(digits_bench: Bench, tmp_path: Path) -> None:
    structure = digits_bench.base.structure
    ranked = {g.name: torch.full((g.size,), float(i)) for i, g in enumerate(structure.groups)}
    found = found_of(
        digits_bench, load("digits", {"targets": [{"flops_fraction": None, "latency_fraction": 0.5}]}).config, ranked
    )
    with pytest.raises(BadInput, match="cannot keep a target of latency"):
        widened_studies(found, tmp_path, factor=2.0, uniform=1.1)
    assert not list(tmp_path.iterdir())


def test_without_a_bottleneck_there_is_nothing_to_widen(digits_bench: Bench, tmp_path: Path) -> None:
    structure = digits_bench.base.structure
    same = {g.name: torch.arange(g.size) / g.size for g in structure.groups}
    found = found_of(digits_bench, load("digits").config, same)
    with pytest.raises(BadInput, match="no group is a bottleneck at this threshold"):
        widened_studies(found, tmp_path, factor=2.0, uniform=1.1)
