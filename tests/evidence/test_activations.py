from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from autoprune.data import Data, TensorSplit
from autoprune.evidence import Evidence, ModelEvidence, Source
from autoprune.evidence import activations as module
from autoprune.graph import Structure, trace
from autoprune.tasks import build_task


def evidence_of(model: nn.Module, inputs: Tensor, batch_size: int = 8) -> tuple[Structure, ModelEvidence]:
    split = TensorSplit(inputs, torch.arange(len(inputs)) % 3)
    source = Source(
        data=Data(split, split, None, "tiny", 3, "tiny"),
        task=build_task(),
        batches=4,
        batch_size=batch_size,
        device=torch.device("cpu"),
    )
    structure = trace(model.eval(), inputs[:2])
    return structure, ModelEvidence(model, structure, source, seed=0)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv, self.depthwise = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.back, self.head = nn.Conv2d(6, 4, 1, bias=False), nn.Linear(16, 3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.stem(x)))
        branch = self.back(self.relu(self.depthwise(self.relu(self.conv(x)))))
        branch += x
        return self.head(nn.functional.adaptive_avg_pool2d(self.relu(branch), 2).flatten(1))


def test_written_before_and_read_behind_the_addition() -> None:
    torch.manual_seed(0)
    model = _Block().double()
    inputs = torch.randn(8, 2, 5, 5, dtype=torch.float64)
    structure, evidence = evidence_of(model, inputs)
    drawn = next(iter(evidence._source.draw()))[0]
    stem = torch.relu(model.bn(model.stem(drawn)))
    inner = torch.relu(model.depthwise(torch.relu(model.conv(stem))))
    back = model.back(inner)
    stream = structure.group("stem")
    for found, expected in (
        (evidence.activations(stream, "written"), (stem, back)),
        (evidence.activations(stream, "read"), (stem, torch.relu(back + stem))),
        (evidence.activations(structure.group("conv"), "written"), (inner,)),
    ):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert torch.allclose(one, other.detach())


def test_what_is_flattened_or_pooled_is_looked_at_before() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(12, 3)
    )
    structure, evidence = evidence_of(model, torch.randn(8, 1, 4, 4))
    (maps,) = evidence.activations(structure.group("0"), "read")
    assert maps.shape == (8, 3, 4, 4)


def test_two_channels_in_one_unit_are_one_map() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 4, 3)
    )
    structure, evidence = evidence_of(model, torch.randn(8, 2, 2, 2))
    (maps,) = evidence.activations(structure.group("0"), "read")
    drawn = next(iter(evidence._source.draw()))[0]
    values = model[:2](drawn).detach()
    assert maps.shape == (8, 4, 4, 2)
    assert torch.equal(maps[:, 1], torch.cat([values[:, 1], values[:, 5]], dim=1))


def test_cut_models_are_followed_with_their_restricted_structure() -> None:
    model = _Block()
    inputs = torch.randn(8, 2, 5, 5)
    structure, evidence = evidence_of(model, inputs)
    keep = {"stem": [0, 2, 3], "conv": [1, 5]}
    small = structure.cut(model, keep)
    other = ModelEvidence(small, structure.restrict(keep), evidence._source, seed=0)
    (maps,) = other.activations(structure.restrict(keep).group("conv"), "written")
    assert maps.shape == (8, 2, 5, 5)


def test_memory_is_bounded_and_samples_go_on_over_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_VALUES", 6 * 16 * 20)
    model = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 4), nn.Flatten(), nn.Linear(5, 3))
    structure, evidence = evidence_of(model, torch.randn(64, 1, 4, 4))
    assert evidence.activations(structure.group("0"), "read")[0].shape == (20, 6, 4, 4)
    assert evidence.activations(structure.group("2"), "read")[0].shape == (32, 5, 1, 1)
    assert set(evidence.gather(Evidence.ACTIVATIONS)) == {"0|wr|relu", "2|wr|conv2d_1"}
