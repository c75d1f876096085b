"""FLOPs, parameters and latency of a model as it stands."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from autoprune.tasks import batch_length, device_of, eval_mode, forward


def count_flops(model: nn.Module, inputs: Any) -> int:
    """Return the FLOPs (2 x MACs) for one sample, as torch.utils.flop_counter counts them."""
    counter = FlopCounterMode(display=False)
    # no_grad, not inference_mode: the counter does not see the calls of inference tensors
    with eval_mode(model), torch.no_grad(), counter:
        forward(model, inputs)
    return int(counter.get_total_flops()) // batch_length(inputs)


def count_params(model: nn.Module) -> int:
    """Return the number of parameters, shared ones once."""
    return sum(p.numel() for p in model.parameters())


def latency_ms(model: nn.Module, inputs: Any, *, warm_up: int = 3, repeats: int = 20) -> float:
    """Return the median time of one forward pass of these inputs in milliseconds, where the model is."""
    on_gpu = device_of(model).type == "cuda"

    def once() -> float:
        begin = time.perf_counter()
        forward(model, inputs)
        if on_gpu:
            torch.cuda.synchronize()
        return (time.perf_counter() - begin) * 1000

    with eval_mode(model), torch.inference_mode():
        for _ in range(warm_up):
            once()
        return statistics.median(once() for _ in range(repeats))
