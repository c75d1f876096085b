"""The same models and the same half width by Torch-Pruning as it comes, for the side by side of `coverage.py`.

passes: the cut model runs, costs less, and its output has its shape. exact: its outputs are those of the full model
with the removed channels at zero, in float64 within 1e-6. What was removed is learnt from a second copy, in which every
parameter holds the numbers of its elements instead of weights: those that are left say what was kept.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

TOLERANCE = 1e-6
_STATISTICS = ("running_mean", "running_var")


def half(model: Any, example: Any) -> dict[str, Any]:
    """Cut everything but the output layer to half width."""
    import torch_pruning

    model.eval()
    # some models keep results of a forward pass, which cannot be copied
    original = copy.deepcopy(model)
    row: dict[str, Any] = {"copy_ms": _copy_ms(model)}
    shapes, full = _run(model, example)
    start = time.process_time()
    try:
        _prune(model, example, torch_pruning.importance.MagnitudeImportance(p=2))
        row["cut_ms"] = round(1e3 * (time.process_time() - start), 1)
        after, flops = _run(model, example)
    except Exception as error:
        return {**row, "passes": False, "exact": False, "error": _short(error)}
    row |= {"passes": after == shapes and flops < full, "half_flops": round(flops / full, 3)}
    if not row["passes"]:
        return {**row, "exact": False}
    try:
        error_found = _error(original, example)
    except Exception as error:
        return {**row, "exact": None, "not_checked": _short(error)}
    return {**row, "difference": float(f"{error_found:.1e}"), "exact": error_found <= TOLERANCE}


def _prune(model: nn.Module, example: Any, importance: Any) -> None:
    import torch_pruning

    outputs = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d) and _classes(m) in (1000, 21)]
    pruner = torch_pruning.pruner.MagnitudePruner(
        model, example, importance=importance, pruning_ratio=0.5, ignored_layers=outputs
    )
    pruner.step()


def _error(model: nn.Module, example: Any) -> float:
    """Largest relative difference between cut and masked, all in float64. Raises when the cut cannot be read."""
    from autoprune.graph import verify

    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        bench = verify.Bench.build(model, ((example,), {}))
    assert bench.precision == "float64", "does not run in float64"
    given = bench.inputs[0][0]
    values = {name: tensor.detach().clone() for name, tensor in _tensors(bench.model)}
    small = copy.deepcopy(bench.model).requires_grad_(True)
    for _, tensor in _tensors(small):
        tensor.data = torch.arange(tensor.numel(), dtype=torch.float64).view(tensor.shape)
    # A random choice of channels, since magnitudes of such weights would always choose the first ones.
    _prune(small, given, lambda group: torch.rand(len(group[0][1]), generator=generator))
    small.requires_grad_(False).eval()
    with torch.no_grad():
        for name, tensor in _tensors(small):
            kept = _kept(name, tensor, values[name])
            tensor.data = values[name].flatten()[tensor.long()]
            _zero(bench.model, name, kept)
        pairs = zip(verify.leaves(small(given)), verify.leaves(bench.model(given)), strict=True)
        return max((verify.relative_error(cut, masked) for cut, masked in pairs), default=0.0)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters, and the statistics of batch normalisation."""
    yield from model.named_parameters()
    for name, buffer in model.named_buffers():
        if name.rpartition(".")[2] in _STATISTICS:
            yield name, buffer


def _kept(name: str, numbers: Tensor, full: Tensor) -> list[np.ndarray[Any, Any]]:
    """Indices that are left on each axis, read from the numbers of the elements."""
    assert numbers.dim() == full.dim(), f"{name} has another rank"
    # By division: numpy's unravel_index gives wrong places for some of these memory layouts.
    left, places = numbers.detach().long().numpy(), []
    for size in reversed(full.shape):
        left, place = np.divmod(left, size)
        places.insert(0, place)
    first = [tuple(slice(None) if i == axis else 0 for i in range(full.dim())) for axis in range(full.dim())]
    kept = [place[at] for place, at in zip(places, first, strict=True)]
    grid = np.ix_(*kept)
    whole = all((place == along).all() for place, along in zip(places, grid, strict=True))
    assert whole, f"what is left of {name} is no choice of whole channels"
    return kept


def _zero(model: nn.Module, name: str, kept: list[np.ndarray[Any, Any]]) -> None:
    """Mask what computes, shifts and scales the removed channels. Columns of layers only read them."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    tensor = getattr(module, leaf)
    layer = isinstance(module, nn.Linear | nn.modules.conv._ConvNd | nn.MultiheadAttention) and tensor.dim() > 1
    out = 1 if isinstance(module, nn.modules.conv._ConvTransposeNd) else 0
    if leaf == "running_var":
        return
    for axis, indices in enumerate(kept):
        gone = np.setdiff1d(np.arange(tensor.shape[axis]), indices)
        if len(gone) and (not layer or axis == out):
            tensor.data.index_fill_(axis, torch.from_numpy(gone), 0)


def _copy_ms(model: nn.Module) -> float:
    times = []
    for _ in range(5):
        start = time.process_time()
        copy.deepcopy(model)
        times.append(1e3 * (time.process_time() - start))
    return round(sorted(times)[2], 1)


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]


def _classes(module: nn.Module) -> int:
    return int(getattr(module, "out_features", 0) or getattr(module, "out_channels", 0))


def _run(model: nn.Module, example: torch.Tensor) -> tuple[list[tuple[int, ...]], int]:
    found = model(example)
    outputs = list(found.values()) if isinstance(found, dict) else [found]
    with FlopCounterMode(display=False) as counter:
        model(example)
    return [tuple(output.shape) for output in outputs], counter.get_total_flops()
