from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoprune.criteria._layers import flops_of_a_map
from autoprune.criteria.taylor_2016 import Taylor2016
from autoprune.data import Data, TensorSplit
from autoprune.evidence import ModelEvidence, Source
from autoprune.evidence.gates import GatedModel
from autoprune.graph import Group, Place, Role, trace
from autoprune.graph.parts import Call, Layer
from autoprune.tasks import Task, build_task

RAW = Taylor2016(layer_norm="none")


def evidence_of(
    model: nn.Module, inputs: Tensor, targets: Tensor, task: Task | None = None, batches: int = 1, size: int = 72
) -> ModelEvidence:
    split = TensorSplit(inputs, targets)
    data = Data(split, split, None, "tiny", None, "tiny")
    source = Source(data=data, task=task or build_task(), batches=batches, batch_size=size, device=torch.device("cpu"))
    return ModelEvidence(model, trace(model.eval(), inputs[:2]), source, seed=0)


def of(criterion: Taylor2016, evidence: ModelEvidence, group: str = "0") -> Tensor:
    return criterion.score(evidence.structure.group(group), evidence)


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.last = nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Linear(5 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.max_pool2d(F.relu(self.bn(self.conv(x))), 2).flatten(1))

    def parts(self, x: Tensor, gate: Tensor) -> tuple[list[Tensor], Tensor]:
        before = self.bn(self.conv(x)) * gate
        after = F.relu(before)
        pooled = F.max_pool2d(after, 2)
        return [before, after, pooled], self.last(pooled.flatten(1))


def test_equals_activation_times_gradient_at_any_hook_and_the_gate() -> None:
    model = Pooled().double()
    nn.init.uniform_(model.bn.weight, 0.5, 2.0)
    nn.init.uniform_(model.bn.bias, -1.0, 1.0)
    images, labels = torch.randn(16, 2, 6, 6, dtype=torch.float64), torch.arange(16) % 3
    found = of(RAW, evidence_of(model, images, labels, size=16), "conv")
    gate = torch.ones(16, 5, 1, 1, dtype=torch.float64, requires_grad=True)
    hooked, logits = model.eval().parts(images, gate)
    grads = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), [*hooked, gate])
    for map_, gradient in zip(hooked, grads, strict=False):
        by_hand = ((map_ * gradient).sum(dim=(2, 3)) / 36).abs().mean(dim=0)
        assert torch.allclose(found, by_hand, rtol=1e-9, atol=0)
    assert torch.allclose(found, grads[-1].abs().mean(0).flatten() / 36, rtol=1e-9, atol=0)
    assert float(found.min()) > 0


def linear_task(coefficients: Tensor) -> Task:
    """The loss is the output times fixed coefficients, mean over the samples."""
    return Task(
        loss=lambda output, targets: (output.flatten(1) * coefficients).sum(dim=1).mean() + 0.0 * targets.sum(),
        metric=lambda output, targets: (0.0, len(output)),
    )


def test_is_exact_on_a_linear_head() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 2)).double()
    images = torch.randn(8, 2, 5, 5, dtype=torch.float64)
    coefficients = torch.randn(4, dtype=torch.float64)
    task = linear_task(coefficients)
    evidence = evidence_of(model, images, torch.zeros(8), task, size=8)
    maps = model[1](model[0](images))
    losses = [(model[2](h).flatten(1) * coefficients).sum(1) for h in (maps, *(without(maps, k) for k in range(4)))]
    change = torch.stack([(losses[0] - loss).abs().mean() for loss in losses[1:]])
    assert torch.allclose(of(RAW, evidence) * 9, change, rtol=1e-9, atol=1e-12)


def without(maps: Tensor, k: int) -> Tensor:
    return torch.cat([maps[:, :k], torch.zeros_like(maps[:, k : k + 1]), maps[:, k + 1 :]], dim=1)


def test_the_absolute_value_stands_between_positions_and_samples() -> None:
    # Two samples add +1 and -1 through unit 0 and +0.1 twice through unit 1; the mean over the batch would be 0.
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Identity(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[2].weight.fill_(1.0)
    inputs = torch.tensor([[1.0, 0.1], [-1.0, 0.1]])
    evidence = evidence_of(model, inputs, torch.zeros(2), linear_task(torch.ones(1)), size=2)
    assert of(RAW, evidence).tolist() == pytest.approx([1.0, 0.1])


def test_positions_cancel_inside_a_map() -> None:
    # one 1 x 2 map with activation times gradient +1 and -1: 0, where the mean of the magnitudes would be 1
    model = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.Conv2d(2, 1, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2).view(2, 2, 1, 1))
        model[1].weight.fill_(1.0)
    inputs = torch.tensor([[[[1.0, -1.0]], [[1.0, 2.0]]]]).repeat(2, 1, 1, 1)
    evidence = evidence_of(model, inputs, torch.zeros(2), linear_task(torch.ones(2)), size=2)
    assert of(RAW, evidence).tolist() == pytest.approx([0.0, 1.5])


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )


def test_normalised_scores_have_norm_one_whatever_the_scale_of_the_loss() -> None:
    model, images, labels = small(), torch.randn(24, 2, 6, 6), torch.arange(24) % 3
    plain = build_task()
    tenfold = Task(loss=lambda o, t: 10 * plain.loss(o, t), metric=plain.metric)
    for group in ("0", "3"):
        one = of(Taylor2016(), evidence_of(model, images, labels, size=8, batches=3), group)
        ten = of(Taylor2016(), evidence_of(model, images, labels, tenfold, size=8, batches=3), group)
        assert float(one.norm()) == pytest.approx(1.0, abs=1e-5)
        assert torch.allclose(one, ten, rtol=1e-4)


def test_a_short_last_batch_has_its_weight_only() -> None:
    model, images, labels = small(), torch.randn(72, 2, 6, 6), torch.arange(72) % 3
    whole = evidence_of(model, images, labels)

    class Uneven(Source):
        def draw(self) -> Iterator[Any]:
            yield from zip(images.split([32, 32, 8]), labels.split([32, 32, 8]), strict=True)

    source = Uneven(data=whole._source.data, task=build_task(), batches=3, batch_size=32, device=torch.device("cpu"))
    split = ModelEvidence(model, whole.structure, source, seed=0)
    assert torch.allclose(of(RAW, whole), of(RAW, split), rtol=1e-6)


def test_the_cost_of_a_map() -> None:
    # F: conv 2*H*W*(C_in*K^2 + 1). 0: 2*16*(2*9 + 1) = 608; 3: 2*4*(6*9 + 1) = 440
    model, images, labels = small(), torch.randn(8, 2, 6, 6), torch.arange(8) % 3
    evidence = evidence_of(model, images, labels, size=8)
    for group, flops in (("0", 608), ("3", 440)):
        free = of(Taylor2016(), evidence, group)
        paper = of(Taylor2016(flops_lambda=1e-3, cost_unit="mflops"), evidence, group)
        assert torch.allclose(free - paper, torch.full_like(free, 1e-3 * flops / 1e6), atol=1e-15)
        relative = of(Taylor2016(flops_lambda=1e-3, cost_unit="max"), evidence, group)
        assert torch.allclose(free - relative, torch.full_like(free, 1e-3 * flops / 608), atol=1e-15)


def test_of_equal_maps_the_dear_ones_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, labels = small(), torch.randn(8, 2, 6, 6), torch.arange(8) % 3
    evidence = evidence_of(model, images, labels, size=8)
    scores = []
    for mflops in (50, 1):
        monkeypatch.setattr("autoprune.criteria.taylor_2016.flops_of_a_map", lambda *_, f=mflops: f * 1e6)
        scores.append(of(Taylor2016(flops_lambda=1e-3, cost_unit="mflops"), evidence))
    assert torch.allclose(scores[1] - scores[0], torch.full((6,), 0.049, dtype=torch.float64))


@pytest.mark.parametrize(("n_in", "side", "mflops"), [(64, 224, 57.9), (128, 112, 28.9)])  # conv1_2, conv2_2
def test_the_papers_cost_of_a_map_of_vgg_16(n_in: int, side: int, mflops: float) -> None:
    size = (side, side)
    layer = Layer("l", "conv", "w", None, n_in, 1, (3, 3), (1, 1), (1, 1), (1, 1), 1, (Call(size, size),))
    structure = SimpleNamespace(layers=(layer,))
    group = Group("g", 1, (Place("w", 0, Role.OUTPUT, "l", np.zeros((1, 1), dtype=np.int64)),), 0.0)
    assert flops_of_a_map(group, structure) / 1e6 == pytest.approx(mflops, abs=0.06)  # type: ignore[arg-type]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.last = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

    def gated(self, x: Tensor, gate: Tensor) -> Tensor:
        x = F.relu(self.stem(x) * gate)
        return self.last(F.relu(x + self.conv(x) * gate).mean(dim=(2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.last(F.relu(x + self.conv(x)).mean(dim=(2, 3)))


def test_the_maps_of_a_stream_share_one_gate() -> None:
    model = Residual().double()
    images, labels = torch.randn(8, 2, 6, 6, dtype=torch.float64), torch.arange(8) % 3
    found = of(RAW, evidence_of(model, images, labels, size=8), "stem")
    gate = torch.ones(8, 4, 1, 1, dtype=torch.float64, requires_grad=True)
    F.cross_entropy(model.eval().gated(images, gate), labels, reduction="sum").backward()
    assert torch.allclose(found, gate.grad.abs().mean(0).flatten() / 16, rtol=1e-9)  # type: ignore[union-attr]


def test_a_model_that_looks_at_values_is_taken_one_by_one() -> None:
    model, images, labels = small(), torch.randn(8, 2, 6, 6), torch.arange(8) % 3
    evidence = evidence_of(model, images, labels, size=8)
    plain = build_task()
    looking = Task(loss=lambda o, t: plain.loss(o, t) * (1.0 if float(o.sum()) > -1e9 else 0.0), metric=plain.metric)
    slow = evidence_of(model, images, labels, looking, size=8)
    assert torch.allclose(of(RAW, evidence), of(RAW, slow), rtol=1e-5)


def test_many_samples_are_taken_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, labels = small(), torch.randn(8, 2, 6, 6), torch.arange(8) % 3
    whole = of(RAW, evidence_of(model, images, labels, size=8))
    monkeypatch.setattr("autoprune.evidence.gates._CHUNK_BYTES", 1)
    evidence = evidence_of(model, images, labels, size=8)
    assert GatedModel(model, evidence.structure, torch.device("cpu"), Role.INPUT)._chunk(1) == 1
    assert torch.allclose(whole, of(RAW, evidence), rtol=1e-5)
