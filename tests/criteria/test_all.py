"""What every criterion owes, found by walking the room."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from autoprune import rooms
from autoprune.criteria import Criterion
from autoprune.errors import NotApplicable
from autoprune.evidence import ModelEvidence, Source
from autoprune.graph import Group, Structure, trace
from autoprune.trial import Bench

NAMES = rooms.names("criteria")
DRAWN = ("random", "hap")  # numbers drawn for a place stay there when the units change places
Look = Callable[[nn.Module, Tensor], tuple[Structure, ModelEvidence]]
MakeEvidence = Callable[[nn.Module, Structure, int], ModelEvidence]


@pytest.fixture(scope="module")
def evidence_for(digits_bench: Bench) -> MakeEvidence:
    source = Source(data=digits_bench.data, task=digits_bench.task, batches=1, batch_size=8, device=torch.device("cpu"))
    return lambda model, structure, seed: ModelEvidence(model, structure, source, seed=seed)


def criterion(name: str) -> Criterion:
    return cast(Criterion, rooms.build("criteria", name))


def all_scores(name: str, structure: Structure, evidence: ModelEvidence) -> dict[str, Tensor]:
    return {g.name: criterion(name).score(g, evidence) for g in structure.groups}


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_one_finite_number_per_unit(name: str, digits_bench: Bench, evidence_for: MakeEvidence) -> None:
    structure = digits_bench.base.structure
    evidence = evidence_for(digits_bench.model, structure, 0)
    for group_name, score in all_scores(name, structure, evidence).items():
        assert score.shape == (structure.group(group_name).size,)
        assert bool(torch.isfinite(score).all())
        assert len(score.unique()) > 1  # a constant ranks nothing


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_score_and_the_model_is_untouched(
    name: str, digits_bench: Bench, evidence_for: MakeEvidence
) -> None:
    structure, model = digits_bench.base.structure, digits_bench.model
    before = copy.deepcopy(model.state_dict())
    gradients = [p.grad for p in model.parameters()]
    global_state = torch.random.get_rng_state()
    first = all_scores(name, structure, evidence_for(model, structure, 3))
    second = all_scores(name, structure, evidence_for(model, structure, 3))
    assert all(torch.equal(first[g], second[g]) for g in first)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(global_state, torch.random.get_rng_state())
    assert [p.grad for p in model.parameters()] == gradients


@pytest.mark.parametrize("name", [n for n in NAMES if n not in DRAWN])
def test_permuted_units_permute_the_scores(name: str, digits_bench: Bench, evidence_for: MakeEvidence) -> None:
    structure = digits_bench.base.structure
    model = copy.deepcopy(digits_bench.model)
    group = max(structure.groups, key=lambda g: len(g.places))
    order = torch.randperm(group.size, generator=torch.Generator().manual_seed(1))
    before = criterion(name).score(group, evidence_for(model, structure, 0))
    permute_units(model, group, order)
    after = criterion(name).score(group, evidence_for(model, structure, 0))
    assert torch.allclose(after, before[order], rtol=1e-3, atol=1e-9)
    assert not torch.allclose(after, before, rtol=1e-3, atol=1e-9)


def permute_units(model: nn.Module, group: Group, order: Tensor) -> None:
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for place in group.places:
            tensor, indices = tensors[place.tensor], torch.tensor(place.indices)
            source = torch.arange(tensor.shape[place.axis])
            source[indices.flatten()] = indices[order].flatten()
            tensor.copy_(tensor.index_select(place.axis, source))


def test_every_criterion_travels_to_a_fresh_process() -> None:
    payload = pickle.dumps([criterion(name) for name in NAMES])
    code = (
        "import pickle, sys; "
        "print(','.join(c.name for c in pickle.loads(sys.stdin.buffer.read())))"  # our own bytes
    )
    done = subprocess.run([sys.executable, "-c", code], input=payload, capture_output=True, check=True)
    assert done.stdout.decode().strip().split(",") == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_scores_stay_finite_with_dead_units(name: str, digits_bench: Bench, evidence_for: MakeEvidence) -> None:
    model = copy.deepcopy(digits_bench.model)
    structure = trace(model, digits_bench.data.example_inputs)
    group = structure.groups[0]
    dead = structure.mask(model, {group.name: range(1, group.size)})
    score = criterion(name).score(group, evidence_for(dead, structure, 0))
    assert bool(torch.isfinite(score).all())


def small(dtype: torch.dtype) -> nn.Module:
    """Two convolutions with norms and a stream; in half precision everything is, norms too."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
            self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.bn1(self.conv1(x)))
            x = torch.relu(x + self.bn2(self.conv2(x)))
            return cast(Tensor, self.head(x.mean(dim=(2, 3))))

    model = Small().to(dtype)
    with torch.no_grad():
        for norm in (model.bn1, model.bn2):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.2, 0.2)
    return model


@pytest.mark.parametrize("count", [1, 5], ids=["one sample", "samples"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float", "half"])
@pytest.mark.parametrize("name", NAMES)
def test_scores_are_finite_in_half_precision_and_for_a_single_sample(
    name: str, dtype: torch.dtype, count: int, look: Look
) -> None:
    structure, evidence = look(small(dtype), torch.randn(count, 2, 5, 5).to(dtype))
    assert structure.groups
    for group in structure.groups:
        try:
            score = criterion(name).score(group, evidence)
        except NotApplicable as reason:
            assert "samples" in str(reason)  # noqa: PT017 - fewer samples than it needs, and it says so
            continue
        assert score.shape == (group.size,)
        assert bool(torch.isfinite(score).all())
        assert count == 1 or len(score.unique()) > 1  # nothing varies over one sample
