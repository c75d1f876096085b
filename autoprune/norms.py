"""Which batch norm stands right behind which layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autoprune.tasks import forward


def norms_behind(model: nn.Module, inputs: Any) -> dict[str, str]:
    """Return the batch norm with running statistics that takes a layer's output as it is, by the layer's name.

    inputs: one batch for the model, which is run once in eval mode. A norm behind several layers is left out.
    """
    # The outputs are held, since an id is free again when its tensor is gone; an in-place operator raises the version.
    made: dict[tuple[int, int], tuple[Tensor, str]] = {}
    found: dict[str, set[str]] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):

            def keep(module: nn.Module, arguments: Any, output: Tensor, name: str = name) -> None:
                made[id(output), output._version] = (output, name)

            handles.append(module.register_forward_hook(keep))
        elif isinstance(module, _BatchNorm) and module.running_mean is not None:

            def look(module: nn.Module, arguments: tuple[Any, ...], name: str = name) -> None:
                given = arguments[0]
                found.setdefault(name, set()).add(made.get((id(given), given._version), (None, ""))[1])

            handles.append(module.register_forward_pre_hook(look))
    try:
        with torch.no_grad():
            forward(model.eval(), inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {layers.copy().pop(): norm for norm, layers in found.items() if len(layers) == 1 and "" not in layers}
