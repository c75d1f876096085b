from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from autoprune.graph import rehearsal


class Overwritten(nn.Module):
    """Sigmoid needs its result for the backward pass; what comes behind it may write into it."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.last = nn.ReLU(inplace=inplace)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.sigmoid(self.layer(x)))


def run(model: nn.Module, *shape: int) -> None:
    rehearsal.backward(model, lambda: [model(torch.randn(*shape))])


def test_tensor_overwritten_in_place_is_found() -> None:
    run(Overwritten(False), 2, 4)
    with pytest.raises(RuntimeError, match="inplace"):
        run(Overwritten(True), 2, 4)


def test_weight_overwritten_in_place_is_found() -> None:
    class Decaying(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            result = super().forward(x * super().forward(x))
            with torch.no_grad():
                self.weight.mul_(0.5)
            return result

    with pytest.raises(RuntimeError, match="inplace"):
        run(Decaying(4, 4), 2, 4)


def test_missing_gradient_function_is_found() -> None:
    class OneWay(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return OneWay.apply(self.layer(x))

    with pytest.raises(NotImplementedError):
        run(Net(), 2, 4)


def test_every_parameter_is_reached_and_no_gradient_stays() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 5)
    )
    reached: set[str] = set()
    for name, parameter in model.named_parameters():
        parameter.register_hook(lambda gradient, name=name: reached.add(name))
    run(model, 2, 3, 8, 8)
    assert reached == {name for name, _ in model.named_parameters()}
    assert all(parameter.grad is None for parameter in model.parameters())
    # and nothing of it is left on the parameters
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
