from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.criteria.epruner import Epruner
from autoprune.evidence import ModelEvidence
from autoprune.evidence.exemplars import BETAS, FloatArray, exemplars, kept_until
from autoprune.graph import Structure

Look = Callable[[nn.Module, torch.Tensor], tuple[Structure, ModelEvidence]]


def found(filters: FloatArray, beta: float) -> list[int]:
    indices = exemplars(filters, beta)
    assert indices is not None
    return list(indices)


def gaussian(seed: int = 0, count: int = 64) -> FloatArray:
    return np.random.default_rng(seed).normal(size=(count, 27))


@pytest.mark.parametrize("beta", [1, 0.9, 0.75, 0.5, 0.25, 0.1])
def test_one_exemplar_for_each_of_three_clusters(beta: float) -> None:
    random = np.random.default_rng(0)
    owner = np.repeat([0, 1, 2], [5, 4, 3])
    filters = np.eye(9)[owner] + 0.01 * random.normal(size=(12, 9))
    assert sorted(owner[found(filters, beta)]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("beta", "fewest", "most"), [(1, 6, 11), (0.9, 8, 12), (0.75, 10, 15), (0.6, 26, 33), (0.5, 47, 55), (0.25, 64, 64)]
)
def test_numbers_of_exemplars_of_random_filters(beta: float, fewest: int, most: int) -> None:
    assert all(fewest - 1 <= len(found(gaussian(seed), beta)) <= most + 1 for seed in range(4))


@pytest.mark.parametrize("seed", range(3))
def test_limits(seed: int) -> None:
    counts = [len(found(gaussian(seed), beta)) for beta in (0, 0.25, 0.5, 0.6, 0.75, 0.9, 1)]
    assert counts[0] == 64
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] > 0


@pytest.mark.parametrize("beta", [1, 0.75, 0.6, 0.5])
def test_scale_and_order_of_the_filters_do_not_matter(beta: float) -> None:
    filters, order = gaussian(), np.random.default_rng(1).permutation(64)
    assert found(7 * filters, beta) == found(filters, beta)
    assert sorted(order[found(filters[order], beta)]) == found(filters, beta)


@pytest.mark.parametrize("beta", [1, 0.75, 0.6])
def test_agrees_with_the_messages_written_out(beta: float) -> None:
    filters = gaussian(count=24)
    s = -((filters[:, None] - filters[None]) ** 2).sum(axis=2)
    np.fill_diagonal(s, beta * np.median(s, axis=0))
    n = len(s)
    r, a = np.zeros_like(s), np.zeros_like(s)
    for _ in range(200):
        total = a + s
        others = np.array([[np.delete(total[i], k).max() for k in range(n)] for i in range(n)])
        r = 0.5 * r + 0.5 * (s - others)
        positive = np.maximum(r, 0)
        np.fill_diagonal(positive, r.diagonal())
        new = positive.sum(axis=0)[None] - positive
        own = new.diagonal().copy()
        new = np.minimum(new, 0)
        np.fill_diagonal(new, own)
        a = 0.5 * a + 0.5 * new
    assert np.flatnonzero((r + a).diagonal() > 0).tolist() == found(filters, beta)


@pytest.mark.parametrize("beta", [0.6, 0.75, 1])
def test_no_random_set_of_the_same_size_serves_better(beta: float) -> None:
    filters = gaussian()
    s = -((filters[:, None] - filters[None]) ** 2).sum(axis=2)
    preference = beta * np.median(s, axis=0)

    def worth(chosen: np.ndarray) -> float:
        others = np.setdiff1d(np.arange(64), chosen)
        return float(s[np.ix_(others, chosen)].max(axis=1).sum() + preference[chosen].sum())

    ours, random = np.array(found(filters, beta)), np.random.default_rng(0)
    assert worth(ours) >= max(worth(random.choice(64, len(ours), replace=False)) for _ in range(300))


def test_copies_have_one_exemplar() -> None:
    copies = np.repeat(gaussian(count=1), 8, axis=0)
    for beta in (0.0, 0.5, 1.0):
        assert len(found(copies, beta)) == 1
    scores = kept_until(copies)
    assert bool(np.isfinite(scores).all())
    assert int((scores >= 0.1).sum()) == 1


def test_a_threshold_keeps_as_many_units_as_there_are_exemplars() -> None:
    filters = gaussian()
    scores = kept_until(filters)
    for beta in BETAS:
        kept, ours = found(filters, beta), np.flatnonzero(scores >= beta - 1e-9)
        assert len(ours) == len(kept)
        assert len(set(ours) & set(kept)) >= 0.7 * len(kept) or len(kept) < 4
    assert len(set(scores)) == 64


def test_what_never_settles_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from autoprune.evidence import exemplars as module

    real = module.exemplars
    monkeypatch.setattr(module, "exemplars", lambda f, beta: None if 0.5 < beta < 0.7 else real(f, beta))
    scores = kept_until(gaussian(count=16))
    assert scores.shape == (16,)
    assert bool(np.isfinite(scores).all())


def test_kept_rows_are_the_filters_themselves_and_the_cut_is_the_masked_network(look: Look) -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 4, 3),
    )  # fmt: skip
    images = torch.randn(16, 2, 4, 4)
    structure, evidence = look(model, images)
    keep = {}
    for group in structure.groups:
        score = Epruner().score(group, evidence)
        assert score.shape == (group.size,)
        keep[group.name] = torch.nonzero(score >= 0.75).flatten().tolist()
    assert [len(k) for k in keep.values()] == [
        len(found(model[i].weight.detach().double().flatten(1).numpy(), 0.75)) for i in (0, 3)
    ]
    thin = structure.cut(model, keep)
    first, second = keep["0"], keep["3"]
    assert torch.equal(thin[0].weight, model[0].weight[first])  # type: ignore[index]
    assert torch.equal(thin[3].weight, model[3].weight[second][:, first])  # type: ignore[index]
    assert torch.allclose(thin(images), structure.mask(model, keep)(images), atol=1e-5)


def test_layers_of_a_stream_count_alike(look: Look) -> None:
    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.one(x) + self.two(x)))

    model = Stream()
    before = _score(look, model)
    with torch.no_grad():
        model.two.weight.mul_(100)
    assert torch.allclose(_score(look, model), before, atol=1e-6)


def _score(look: Look, model: nn.Module) -> torch.Tensor:
    structure, evidence = look(model, torch.randn(16, 3))
    return Epruner().score(structure.groups[0], evidence)
