"""Activations that let the negative through, in place and not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from autoprune.graph.lively import Lively

GIVEN = torch.tensor([-4.0, -1.0, 0.0, 3.0, 8.0])
LEAKING = torch.tensor([-2.0, -0.5, 0.0, 3.0, 8.0])


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("kind", [nn.ReLU, nn.ReLU6, nn.Hardswish])
def test_half_of_what_is_negative_passes(kind: type[nn.Module], inplace: bool) -> None:
    x, layer = GIVEN.clone(), kind(inplace=inplace)
    plain = layer(x.clone())
    with torch.no_grad(), Lively():
        found = layer(x)
    torch.testing.assert_close(found, LEAKING)
    assert (found is x) == inplace
    assert not torch.allclose(plain, LEAKING)


@pytest.mark.parametrize("function", [functional.gelu, functional.hardtanh, torch.sigmoid, functional.leaky_relu])
def test_others_are_as_they_are(function: object) -> None:
    def run() -> Tensor:
        return function(GIVEN.clone())  # type: ignore[operator, no-any-return]

    plain = run()
    with torch.no_grad(), Lively():
        assert torch.equal(run(), plain)


def test_flops_are_counted_meanwhile() -> None:
    layer = nn.Sequential(nn.Linear(5, 3), nn.ReLU())
    with torch.no_grad(), Lively(), FlopCounterMode(display=False) as counter:
        layer(GIVEN[None])
    assert counter.get_total_flops() == 2 * 5 * 3
