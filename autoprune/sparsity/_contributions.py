"""How much each connection adds to its neuron, in absolute value, over samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from autoprune import masks
from autoprune.sparsity._base import SparsityContext
from autoprune.tasks import eval_mode, forward

_BATCH = 128


def scored_layers(model: nn.Module) -> dict[str, Any]:
    """Return by weight the layers whose connections are scored: no depthwise and no transposed convolution."""
    found = {}
    for name in masks.prunable(model):
        layer = model.get_submodule(name.rpartition(".")[0])
        depthwise = isinstance(layer, _ConvNd) and layer.groups > 1 and layer.weight.shape[1] == 1
        if not depthwise and not isinstance(layer, _ConvTransposeNd):
            found[name] = layer
    return found


def bias_of(weight: str) -> str:
    """Return the name of the bias beside a weight."""
    return weight.removesuffix("weight") + "bias"


def contributions(
    model: nn.Module, layers: Mapping[str, Any], context: SparsityContext, samples: int, seed: int
) -> tuple[dict[str, Tensor], int]:
    """Return by weight (J, I) or, with a bias, (J, I + 1) mean contributions, and how many samples were looked at.

    J outputs, I inputs of each; the bias comes last. Unit: that of the layer's output.
    """
    sums: dict[str, Tensor] = {}
    split = context.data.train
    limit = min(samples, len(split))

    def watch(name: str) -> Any:
        def hook(layer: Any, given: tuple[Tensor, ...], output: Tensor) -> None:
            found = _of_linear(layer, given[0]) if isinstance(layer, nn.Linear) else _of_conv(layer, given[0], output)
            sums[name] = sums[name] + found if name in sums else found

        return hook

    handles = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    try:
        with eval_mode(model), torch.no_grad():
            for inputs, _ in split.batches(_BATCH, seed=seed, limit=limit, device=context.device):
                forward(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / limit for name, total in sums.items()}, limit


def _of_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Sum over samples of |w x|; further axes of the input (tokens) are averaged."""
    samples, rows = len(x), x.reshape(-1, x.shape[-1]).abs().double()
    found_JI = layer.weight.abs().double() * (rows.sum(dim=0) * samples / len(rows))
    return (
        found_JI if layer.bias is None else torch.cat([found_JI, samples * layer.bias.abs().double()[:, None]], dim=1)
    )


def _of_conv(layer: Any, x: Tensor, output: Tensor) -> Tensor:
    """Sum over samples of the norm of what each kernel adds."""
    groups, inputs = layer.groups, layer.weight.shape[1]
    by_group = x.abs().reshape(len(x), groups, inputs, *x.shape[2:])
    kernels = layer.weight.abs()
    columns = []
    for i in range(inputs):
        # one channel of every group: a convolution with as many groups, of one channel each
        maps = layer._conv_forward(by_group[:, :, i], kernels[:, i : i + 1], None)
        columns.append(maps.flatten(2).double().norm(dim=2).sum(dim=0))
    if layer.bias is not None:
        positions = output[0, 0].numel()
        columns.append(len(x) * layer.bias.abs().double() * positions**0.5)
    return torch.stack(columns, dim=1)
