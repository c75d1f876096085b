"""Layers as the structure describes them, made from real modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from autoprune.graph import Call, Layer


@pytest.fixture
def layer_of() -> Callable[[nn.Module, torch.Tensor], Layer]:
    """Return a maker of the layer of a module, called once on inputs with a batch axis."""

    def make(module: nn.Module, inputs: torch.Tensor) -> Layer:
        with torch.no_grad():
            outputs = module(inputs)
        bias = "layer.bias" if module.bias is not None else None
        if isinstance(module, nn.Linear):
            positions = (inputs[0, ..., 0].numel(),)
            call = Call(positions, positions)
            geometry: dict[str, Any] = dict.fromkeys(("kernel", "stride", "padding", "dilation"), ())
            widths, groups, kind = (module.in_features, module.out_features), 1, "linear"
        else:
            conv: Any = module
            call = Call(tuple(inputs.shape[2:]), tuple(outputs.shape[2:]))
            padding = (0,) * len(conv.kernel_size) if isinstance(conv.padding, str) else conv.padding
            geometry = {
                "kernel": conv.kernel_size,
                "stride": conv.stride,
                "padding": padding,
                "dilation": conv.dilation,
            }
            widths, groups, kind = (conv.in_channels, conv.out_channels), conv.groups, "conv"
        return Layer(
            name="layer",
            kind=kind,
            weight="layer.weight",
            bias=bias,
            in_features=widths[0],
            out_features=widths[1],
            groups=groups,
            calls=(call,),
            **geometry,
        )

    return make
