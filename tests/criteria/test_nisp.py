from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoprune.allocation._ranking import global_path
from autoprune.criteria._feature_ranking import inf_fs, path_sums, spearman
from autoprune.criteria.nisp import Nisp
from autoprune.evidence import ModelEvidence
from autoprune.graph import Structure

Look = Callable[[nn.Module, Tensor], tuple[Structure, ModelEvidence]]


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        ([[0, 1], [1, 0]], [9, 9]),
        ([[0, 1, 0], [1, 0, 1], [0, 1, 0]], [7.61261, 10.96206, 7.61261]),
        ([[0, 0], [0, 0]], [0, 0]),
    ],
)
def test_sums_over_paths(graph: list[list[float]], expected: list[float]) -> None:
    assert path_sums(torch.tensor(graph, dtype=torch.float64), 0.9).tolist() == pytest.approx(expected, abs=1e-5)


def test_rank_correlation_with_ties_and_constants() -> None:
    features = torch.tensor([[1.0, 10, 0, 7], [2, 30, 0, 7], [2, 20, 1, 7], [5, 40, 0, 7]], dtype=torch.float64)
    found = spearman(features)
    # Ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4 and 2, 2, 4, 2.
    assert float(found[0, 1]) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert float(found[0, 2]) == pytest.approx(0)
    assert found[3].tolist() == [0, 0, 0, 0]
    assert float(found[1, 1]) == pytest.approx(1)
    assert torch.allclose(spearman(features[:, :2].exp()), found[:2, :2])


def test_features_that_never_change_score_zero_and_independent_ones_most() -> None:
    torch.manual_seed(0)
    base = torch.randn(200, 2)
    one, other = base.T
    features = torch.stack([one, one + 0.01 * other, 1.01 * one, other, 0 * one], dim=1)
    score = inf_fs(features, alpha=0.0, damping=0.9)
    assert float(score[4]) == 0
    assert int(score.argmax()) == 3
    spread = inf_fs(torch.randn(200, 4) * torch.tensor([1.0, 5.0, 1.0, 1.0]), alpha=1.0, damping=0.9)
    assert int(spread.argmax()) == 1


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, 8),
        nn.ReLU(), nn.Linear(8, 3),
    )  # fmt: skip


def test_the_score_of_a_unit_is_the_sum_over_its_positions(look: Look) -> None:
    model = network().double()
    structure, evidence = look(model, torch.randn(16, 3, 4, 4, dtype=torch.float64))
    score = Nisp(final="magnitude", keep_fraction=1.0, layer_norm="none").score(structure.group("0"), evidence)
    final = model[7].weight.abs().sum(0)
    expected = (model[5].weight.abs().T @ final).reshape(6, 4).sum(1)
    assert torch.allclose(score, expected.detach(), rtol=1e-9)


def test_final_responses_are_ranked_behind_their_activation(look: Look) -> None:
    model = network().double()
    images = torch.randn(16, 3, 4, 4, dtype=torch.float64)
    structure, evidence = look(model, images)
    responses = torch.cat([model[:7](b) for b, _ in evidence._source.draw()]).detach()
    score = Nisp(alpha=0.3, layer_norm="none").score(structure.group("5"), evidence)
    assert torch.allclose(score, inf_fs(responses, 0.3, 0.9), rtol=1e-4)
    assert torch.equal(Nisp(final="uniform").score(structure.group("5"), evidence), torch.ones(8, dtype=torch.float64))


def test_scores_of_a_deep_network_compare_between_groups(look: Look) -> None:
    """Each of 24 layers of positive weights multiplies a score by about 50: ranked as they are, the last layer goes."""
    layers = [part for _ in range(24) for part in (nn.Linear(10, 10), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(10, 3)).double()
    for module in layers[::2]:
        nn.init.uniform_(module.weight, 0.0, 10.0)
    structure, evidence = look(model, torch.rand(16, 10, dtype=torch.float64) * 1e-3)
    raw, compared = (
        [Nisp(final="magnitude", layer_norm=how).score(g, evidence) for g in structure.groups]
        for how in ("none", "mean")
    )
    assert float(raw[0].max() / raw[-1].max()) > 1e30
    for before, after in zip(raw, compared, strict=True):
        assert float(after.mean()) == pytest.approx(1.0)
        assert torch.allclose(after / after.max(), before / before.max())
    sizes = np.array([len(score) for score in compared])
    gone = {
        how: sizes - global_path(structure, dict(zip(structure.names, scores, strict=True)))(1.0)
        for how, scores in (("none", raw), ("mean", compared))
    }
    assert gone["none"].max() == 10  # whole layers, the last first
    assert gone["mean"].max() < 10
    assert gone["none"].sum() == gone["mean"].sum() == sizes.sum() // 2


def test_half_precision_and_a_batch_of_one(look: Look) -> None:
    structure, evidence = look(network().bfloat16(), torch.randn(1, 3, 4, 4).bfloat16())
    for final in ("inf_fs", "magnitude"):
        score = Nisp(final=final).score(structure.group("0"), evidence)
        assert score.dtype == torch.float64
        assert bool(torch.isfinite(score).all())
