"""The same models and the same half width by Torch-Pruning as it comes, for the side by side of `coverage.py`."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def half(model: Any, example: Any) -> dict[str, Any]:
    """Cut everything but the output layer to half width. passes: it runs, costs less, and its output has its shape."""
    import torch_pruning

    model.eval()
    shapes, full = _run(model, example)
    outputs = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d) and _classes(m) in (1000, 21)]
    start = time.perf_counter()
    try:
        pruner = torch_pruning.pruner.MagnitudePruner(
            model,
            example,
            importance=torch_pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=0.5,
            ignored_layers=outputs,
        )
        pruner.step()
        cut_s = time.perf_counter() - start
        after, flops = _run(model, example)
    except Exception as error:
        return {"passes": False, "error": f"{type(error).__name__}: {error}"[:200]}
    return {"passes": after == shapes and flops < full, "half_flops": round(flops / full, 3), "cut_s": round(cut_s, 2)}


def _classes(module: nn.Module) -> int:
    return int(getattr(module, "out_features", 0) or getattr(module, "out_channels", 0))


def _run(model: nn.Module, example: torch.Tensor) -> tuple[list[tuple[int, ...]], int]:
    found = model(example)
    outputs = list(found.values()) if isinstance(found, dict) else [found]
    with FlopCounterMode(display=False) as counter:
        model(example)
    return [tuple(output.shape) for output in outputs], counter.get_total_flops()
