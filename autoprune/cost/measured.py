"""FLOPs, parameters and latency of a model as it stands."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils.flop_counter import FlopCounterMode

from autoprune.dynamic import as_dense
from autoprune.masks import prunable
from autoprune.tasks import batch_length, device_of, eval_mode, forward


def count_flops(model: nn.Module, inputs: Any) -> int:
    """Return the FLOPs (2 x MACs) for one sample, as torch.utils.flop_counter counts them.

    Layers whose cost depends on their input count as dense.
    """
    counter = FlopCounterMode(display=False)
    # no_grad, not inference_mode: the counter does not see the calls of inference tensors
    with eval_mode(model), as_dense(model), torch.no_grad(), counter:
        forward(model, inputs)
    return int(counter.get_total_flops()) // batch_length(inputs)


def count_sparse_flops(model: nn.Module, inputs: Any, flops: int) -> int:
    """Return the FLOPs for one sample without the products that have a zero weight, of `flops` with them.

    Every zero of a convolution or linear layer saves 2 x the positions at which the layer applies it. A weight that is
    read past its module's call counts as dense.
    """
    zeros = {name.rpartition(".")[0]: _zeros(weight) for name, weight in prunable(model).items()}
    saved = 0

    def count(zeros: int) -> Any:
        def hook(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            nonlocal saved
            saved += 2 * zeros * _positions(module, given[0], output)

        return hook

    handles = [
        model.get_submodule(name).register_forward_hook(count(number)) for name, number in zeros.items() if number
    ]
    if not handles:
        return flops
    try:
        with eval_mode(model), as_dense(model), torch.no_grad():
            forward(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return flops - saved // batch_length(inputs)


def sparsity_of(model: nn.Module) -> float:
    """Return the share of zeros among the weights of convolutions and linear layers."""
    weights = prunable(model).values()
    return sum(map(_zeros, weights)) / max(1, sum(w.numel() for w in weights))


def _zeros(weight: Tensor) -> int:
    return int((weight.detach() == 0).sum())


def _positions(module: nn.Module, given: Tensor, output: Tensor) -> int:
    """Return how often a layer applied each of its weights, over the whole batch."""
    if isinstance(module, nn.Linear):
        return given.numel() // module.in_features
    # a transposed convolution spreads every input position, any other gathers for every output position
    if isinstance(module, _ConvTransposeNd):
        return given.numel() // module.in_channels
    assert isinstance(module, _ConvNd)
    return output.numel() // module.out_channels


def count_params(model: nn.Module) -> int:
    """Return the number of parameters, shared ones once."""
    return sum(p.numel() for p in model.parameters())


def latency_ms(model: nn.Module, inputs: Any, *, warm_up: int = 3, repeats: int = 20) -> float:
    """Return the median time of one forward pass of these inputs in milliseconds, where the model is."""
    return latencies_ms([model], inputs, warm_up=warm_up, repeats=repeats)[0]


def latencies_ms(models: Sequence[nn.Module], inputs: Any, *, warm_up: int = 3, repeats: int = 20) -> tuple[float, ...]:
    """Return the same of several models, which take turns, so that what else the machine does falls on all alike."""

    def once(model: nn.Module) -> float:
        begin = time.perf_counter()
        forward(model, inputs)
        if device_of(model).type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - begin) * 1000

    with contextlib.ExitStack() as modes, torch.inference_mode():
        for model in models:
            modes.enter_context(eval_mode(model))
        for _ in range(warm_up):
            for model in models:
                once(model)
        times = [[once(model) for model in models] for _ in range(repeats)]
    return tuple(statistics.median(own) for own in zip(*times, strict=True))
