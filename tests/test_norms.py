from __future__ import annotations

import torch
from torch import Tensor, nn

from autoprune.norms import norms_behind


class Network(nn.Module):
    """One norm right behind a convolution, one behind an activation in place, one behind two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.right, self.late, self.shared = (nn.BatchNorm2d(3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.right(self.a(x)).relu()
        x = self.late(self.b(x).relu_())
        y: Tensor = self.shared(self.c(x)) + self.shared(self.a(x))
        return y


def test_a_norm_belongs_to_the_layer_whose_output_it_takes_as_it_is() -> None:
    assert norms_behind(Network(), torch.randn(2, 3, 4, 4)) == {"a": "right"}


def test_nothing_stays_behind() -> None:
    model = Network()
    norms_behind(model, torch.randn(2, 3, 4, 4))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
