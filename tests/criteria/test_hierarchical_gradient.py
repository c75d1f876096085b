from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from autoprune.allocation import AllocationContext
from autoprune.criteria.hierarchical_gradient import (
    Downdates,
    HierarchicalGradient,
    cheapest,
    removal,
)
from autoprune.data import Data, TensorSplit
from autoprune.errors import NotApplicable
from autoprune.evidence import ModelEvidence, Source
from autoprune.evidence.filter_gradients import needed_eps, redundancy, spectrum
from autoprune.graph import Structure, trace
from autoprune.tasks import Task

Look = Callable[[nn.Module, Tensor], tuple[Structure, ModelEvidence]]
Global = importlib.import_module("autoprune.allocation.global").Global


class Regression:
    """5 inputs, 6 hidden ReLU units, one output, loss 1/2 (f - y)^2, 64 samples; drawn in the order of the fields."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.x, self.y = torch.randn(64, 5, dtype=torch.float64), torch.randn(64, dtype=torch.float64)
        self.weight = torch.randn(6, 5, dtype=torch.float64)
        self.bias = 0.1 * torch.randn(6, dtype=torch.float64)
        self.out = torch.randn(6, dtype=torch.float64)

    def gradients(self) -> Tensor:
        """(N d, C), stacked over samples: the columns are the filters."""
        hidden = self.x @ self.weight.T + self.bias
        residual = torch.relu(hidden) @ self.out - self.y
        pull_NC = residual[:, None] * self.out * (hidden > 0)
        rows = torch.cat([self.x, torch.ones(64, 1, dtype=torch.float64)], dim=1)
        return (pull_NC[:, None, :] * rows[:, :, None]).flatten(0, 1)

    def evidence(self) -> tuple[Structure, ModelEvidence]:
        model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 1, bias=False)).double().eval()
        with torch.no_grad():
            model[0].weight.copy_(self.weight)
            model[0].bias.copy_(self.bias)
            model[2].weight.copy_(self.out[None])
        task = Task(loss=lambda f, y: 0.5 * (f[:, 0] - y).square().mean(), metric=lambda f, y: (0, 1))
        split = TensorSplit(self.x, self.y)
        data = Data(split, split, None, "regression", None, "regression")
        structure = trace(model, self.x[:2])
        source = Source(data=data, task=task, batches=2, batch_size=32, device=torch.device("cpu"))
        return structure, ModelEvidence(model, structure, source, seed=0)

    def gram(self) -> Tensor:
        structure, evidence = self.evidence()
        return evidence.filter_gradients(structure.group("0"))

    def copy_unit(self, *, scale: float = 1.0, output: bool = False) -> None:
        self.weight[1], self.bias[1] = scale * self.weight[0], scale * self.bias[0]
        if output:
            self.out[1] = self.out[0]


def test_gathered_as_defined() -> None:
    net = Regression()
    stacked = net.gradients()
    assert torch.allclose(net.gram(), stacked.T @ stacked / 64, rtol=1e-9)


def lacking(net: Regression) -> int:
    return redundancy(spectrum(net.gram()), 1e-9)


def test_redundancy_counts_what_could_go() -> None:
    generic = Regression()
    assert lacking(generic) == 0
    values = spectrum(generic.gram())
    assert float(values[-1] / values[0]) == pytest.approx(1.4e-6, rel=1)
    overlap, dependent, eliminated, dead, all_three = (Regression() for _ in range(5))
    overlap.copy_unit()
    dependent.copy_unit(scale=2.5)
    eliminated.out[2] = 0
    dead.bias[3] = -100
    all_three.copy_unit()
    all_three.out[2], all_three.bias[3] = 0, -100
    assert [lacking(net) for net in (overlap, dependent, eliminated, dead, all_three)] == [1, 1, 1, 1, 3]
    gram = eliminated.gram()
    assert bool((gram[2] == 0).all())
    assert bool((gram[:, 2] == 0).all())


def test_schur_complement_and_downdate() -> None:
    net = Regression()
    stacked, gram = net.gradients(), net.gram()
    inverse = torch.linalg.inv(gram)
    for unit in range(6):
        others = [c for c in range(6) if c != unit]
        fit = torch.linalg.lstsq(stacked[:, others], stacked[:, unit : unit + 1]).solution
        left = (stacked[:, unit : unit + 1] - stacked[:, others] @ fit).square().sum() / 64
        assert float(1 / inverse[unit, unit]) == pytest.approx(float(left), rel=1e-8)
    downdates = Downdates(inverse, 3)
    for gone in ([2], [2, 4], [2, 4, 0]):
        downdates.remove(gone[-1])
        others = [c for c in range(6) if c not in gone]
        expected = torch.linalg.inv(gram[others][:, others])
        rows = torch.stack([downdates.row(c) for c in others])
        assert torch.allclose(rows[:, others], expected, rtol=1e-8)
        assert torch.allclose(downdates.diagonal_C[others], expected.diagonal(), rtol=1e-8)
        assert torch.allclose(rows[:, gone], torch.zeros(len(others), len(gone), dtype=rows.dtype), atol=1e-7)


def test_of_two_equal_units_one_goes_first_and_the_other_stays() -> None:
    """By its own gradient energy alone each of them would go last."""
    net = Regression()
    net.copy_unit(output=True)
    gram = net.gram()
    energy = (net.weight.square().sum(1) + net.bias.square()) / 6
    order, _ = removal(gram, 6 * energy, 6, 1, 0)
    assert order[0] in (0, 1)
    assert order[1:4] == [5, 3, 4]
    survivor = 1 - order[0]
    left = [c for c in range(6) if c != order[0]]
    cost = 0.5 * energy[left] / torch.linalg.inv(gram[left][:, left]).diagonal()
    assert left[int(cost.argmax())] == survivor
    by_own_gradient = gram.diagonal().argsort().tolist()
    assert by_own_gradient[:4] == [5, 3, 4, 2]
    assert set(by_own_gradient[4:]) == {0, 1}
    assert cheapest(gram, energy, 4) == order[:4]
    structure, evidence = net.evidence()
    score = HierarchicalGradient().score(structure.group("0"), evidence)
    assert score.argsort().tolist() == order


def test_the_smallest_eigenvalues_are_the_error_of_the_best_approximation() -> None:
    net = Regression()
    stacked, values = net.gradients(), spectrum(net.gram())
    left, singular, right = torch.linalg.svd(stacked, full_matrices=False)
    for count in range(1, 6):
        kept = 6 - count
        approximation = left[:, :kept] * singular[:kept] @ right[:kept]
        error = (stacked - approximation).square().sum() / 64
        assert float(values[kept:].sum()) == pytest.approx(float(error), rel=1e-6)


def test_caps_grow_with_eps_and_do_not_depend_on_scale() -> None:
    values = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    assert needed_eps(values).tolist() == pytest.approx([0.1, 0.3, 0.6, 1])
    assert [redundancy(values, eps) for eps in (0.05, 0.1, 0.35, 0.99)] == [0, 1, 2, 3]
    assert redundancy(1e6 * values, 0.35) == 2
    assert redundancy(torch.zeros(4, dtype=torch.float64), 0.01) == 3


def network() -> nn.Sequential:
    torch.manual_seed(0)
    convs = (nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 10, 3, padding=1), nn.ReLU())
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 3)).double()


@pytest.mark.parametrize("eps", [0.02, 0.2])
def test_no_layer_goes_beyond_its_redundancy_before_all_have_reached_it(look: Look, eps: float) -> None:
    structure, evidence = look(network(), torch.randn(16, 3, 6, 6, dtype=torch.float64))
    scores = {g.name: HierarchicalGradient(eps=eps).score(g, evidence) for g in structure.groups}
    caps = {g.name: redundancy(spectrum(evidence.filter_gradients(g)), eps) for g in structure.groups}
    for name, score in scores.items():
        assert int((score < 1).sum()) == caps[name]
        assert len(score.unique()) == len(score)
    path = Global().path(AllocationContext.of(scores, structure))
    sizes = structure.sizes
    total, allowed = int(sizes.sum()), sum(caps.values())
    assert 0 < allowed < total
    for count in range(total):
        gone = sizes - path(-torch.log2(torch.tensor(1 - (count + 0.5) / total, dtype=torch.float64)).item())
        assert int(gone.sum()) == count
        if count <= allowed:
            assert all(g <= caps[name] for g, name in zip(gone, structure.names, strict=True))
        else:
            # What goes beyond is what the smallest eps that reaches so far allows.
            last = [scores[n].sort().values[int(g) - 1] for g, n in zip(gone, structure.names, strict=True) if g]
            eps_now = float(torch.stack(last).max()) - 1
            most = [redundancy(spectrum(evidence.filter_gradients(g)), eps_now + 1e-9) for g in structure.groups]
            assert eps_now >= 1 - 1e-9 or all(g <= m for g, m in zip(gone, most, strict=True))


def test_layers_are_taken_in_chunks_by_their_error_for_each_mac(look: Look) -> None:
    """The literal loop: the layer whose next chunk is cheapest, then the filters in it."""
    model = network()
    structure, evidence = look(model, torch.randn(16, 3, 6, 6, dtype=torch.float64))
    eps, step = 0.2, 0.15
    grams = {g.name: evidence.filter_gradients(g) for g in structure.groups}
    square, length = {}, {}
    for g in structure.groups:
        layer = model[int(g.name)]
        square[g.name] = layer.weight.detach().flatten(1).square().sum(1) + layer.bias.detach().square()
        length[g.name] = layer.weight[0].numel() + 1
    left = {g.name: list(range(g.size)) for g in structure.groups}
    budget = {name: redundancy(spectrum(gram), eps) for name, gram in grams.items()}
    expected: list[tuple[str, int]] = []
    while any(budget.values()):
        price, count = {}, {}
        for g in structure.groups:
            if budget[g.name]:
                kept = left[g.name]
                count[g.name] = min(budget[g.name], max(1, round(step * g.size)))
                tail = spectrum(grams[g.name][kept][:, kept])[len(kept) - count[g.name] :].sum()
                error = 0.5 * square[g.name][kept].sum() / (len(kept) * length[g.name]) * tail
                price[g.name] = float(error) / (g.flops_per_unit / 2 * count[g.name])
        name = min(price, key=lambda n: price[n])
        kept = left[name]
        gone = [kept[i] for i in cheapest(grams[name][kept][:, kept], square[name][kept] / length[name], count[name])]
        expected += [(name, c) for c in gone]
        left[name] = [c for c in kept if c not in gone]
        budget[name] -= len(gone)
    method = HierarchicalGradient(eps=eps, step=step)
    found = [(float(s), g.name, c) for g in structure.groups for c, s in enumerate(method.score(g, evidence))]
    assert [(name, c) for score, name, c in sorted(found) if score < 1] == expected


def test_too_few_samples_are_refused(look: Look) -> None:
    model = nn.Sequential(nn.Linear(1, 40, bias=False), nn.ReLU(), nn.Linear(40, 3))
    structure, evidence = look(model, torch.randn(16, 1))
    with pytest.raises(NotApplicable, match="take more evidence_batches"):
        HierarchicalGradient().score(structure.group("0"), evidence)
