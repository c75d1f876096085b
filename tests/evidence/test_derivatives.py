from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from autoprune import rooms
from autoprune.data import Data, TensorSplit
from autoprune.errors import NotApplicable
from autoprune.evidence import ModelEvidence, Source
from autoprune.graph import trace
from autoprune.tasks import build_task


def evidence_of(model: nn.Module, inputs: Tensor) -> ModelEvidence:
    split = TensorSplit(inputs, torch.arange(len(inputs)) % 3)
    data = Data(split, split, None, "tiny", 3, "tiny")
    source = Source(data=data, task=build_task(), batches=1, batch_size=len(inputs), device=torch.device("cpu"))
    return ModelEvidence(model, trace(model.eval(), inputs[:2], verify=False), source, seed=0)


def test_attention_is_differentiated_sample_by_sample() -> None:
    model = VisionTransformer(16, 8, 2, 2, 8, 12, num_classes=3).double()
    nn.init.normal_(model.heads.head.weight)
    evidence = evidence_of(model, torch.randn(4, 3, 16, 16, dtype=torch.float64))
    group = next(g for g in evidence.structure.groups if "mlp" in g.name)
    parameters = dict(model.named_parameters())
    (place,) = group.consumers
    expected = []
    for image, target in zip(*next(evidence._source.draw()), strict=True):
        model.zero_grad()
        build_task().loss(model(image[None]), target[None]).backward()  # type: ignore[no-untyped-call]
        weight = parameters[place.tensor]
        expected.append((weight * weight.grad).detach().sum(dim=0))
    assert torch.allclose(evidence.example_gate_gradients(group), torch.stack(expected), rtol=1e-9)
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("name", ["taylor_2019_second_order", "hap", "sosp_h", "sosp_i"])
def test_second_order_goes_through_attention(name: str) -> None:
    evidence = evidence_of(VisionTransformer(16, 8, 2, 2, 8, 12, num_classes=3), torch.randn(4, 3, 16, 16))
    for group in evidence.structure.groups:
        assert bool(torch.isfinite(rooms.build("criteria", name).score(group, evidence)).all())  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["taylor_2019_second_order", "hap", "sosp_h"])
def test_an_operator_without_a_second_derivative_is_named(name: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Hardsigmoid(), nn.Linear(4, 3))
    evidence = evidence_of(model, torch.randn(6, 3))
    with pytest.raises(NotApplicable, match="hardsigmoid"):
        rooms.build("criteria", name).score(evidence.structure.groups[0], evidence)  # type: ignore[attr-defined]
