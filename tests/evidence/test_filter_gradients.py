from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from autoprune.data import Data, TensorSplit
from autoprune.evidence import Evidence, ModelEvidence, Source
from autoprune.evidence import filter_gradients as module
from autoprune.graph import trace
from autoprune.tasks import build_task


class _Net(nn.Module):
    """A stream of two producers, a convolution in groups, a depthwise one, and a sequence of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 6, 3, padding=1, stride=2), nn.BatchNorm2d(6)
        self.wide, self.depthwise = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.back, self.grouped = nn.Conv2d(8, 6, 1, bias=False), nn.Conv2d(6, 6, 3, groups=2)
        self.tokens, self.head = nn.Linear(6, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.stem(x)))
        x = x + self.back(torch.relu(self.depthwise(torch.relu(self.wide(x)))))
        x = torch.relu(self.grouped(x)).flatten(2).transpose(1, 2)
        return self.head(torch.tanh(self.tokens(x)).mean(1))


@pytest.mark.parametrize("most_values", [1, 2**25])
@pytest.mark.parametrize("by_positions", [None, True, False], ids=["cheaper", "positions", "weights"])
def test_equals_one_backward_pass_for_every_sample(
    monkeypatch: pytest.MonkeyPatch, most_values: int, by_positions: bool | None
) -> None:
    monkeypatch.setattr(module, "_MOST_VALUES", most_values)
    if by_positions is not None:
        dense = lambda layer: getattr(layer, "groups", 1) == 1  # noqa: E731
        monkeypatch.setattr(module, "_by_positions", lambda layer, *_, size: by_positions and dense(layer))
    model = _Net().double().eval()
    images, labels = torch.randn(8, 3, 9, 9, dtype=torch.float64), torch.arange(8) % 3
    split = TensorSplit(images, labels)
    data = Data(split, split, None, "tiny", 3, "tiny")
    source = Source(data=data, task=build_task(), batches=2, batch_size=4, device=torch.device("cpu"))
    structure = trace(model, images[:2])
    found = ModelEvidence(model, structure, source, seed=0).gather(Evidence.FILTER_GRADIENTS)

    producers = {"stem": ["stem", "back"], "wide": ["wide", "depthwise"], "grouped": ["grouped"], "tokens": ["tokens"]}
    parameters = dict(model.named_parameters())
    for group in structure.groups:
        if group.name not in producers:
            continue
        expected = torch.zeros(group.size, group.size, dtype=torch.float64)
        for image, label in zip(images, labels, strict=True):
            model.zero_grad()
            nn.functional.cross_entropy(model(image[None]), label[None]).backward()
            for place in group.places:
                if place.module in producers[group.name] and place.axis == 0:
                    gradient = parameters[place.tensor].grad[torch.tensor(place.indices)].flatten(1)
                    expected += gradient @ gradient.T / 8
        assert torch.allclose(found[group.name], expected, rtol=1e-9, atol=1e-15), group.name
