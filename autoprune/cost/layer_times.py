"""The time of a forward pass in closed form, from times of single layers, for targets of latency.

Every layer is timed alone on a grid of widths, of what it reads and what it writes: what two groups on the two sides of
one layer save does not add up. Between grid points times are interpolated on both axes. What a whole model takes beyond
its layers is fitted to whole models that were cut and timed:

    time = scale * sum over layers of time(layer, in, out) + rest + per_activation * activations

with scale, rest, per_activation >= 0 by least squares of the relative error. Kernels work on blocks of channels, so
that 33 may take as long as 48: widths count as the next multiple of 1, 4, 8 or 16, whichever fits best. Other models,
cut at random, say how far off that is. The shortest of several calls counts everywhere: what other work on the machine
adds is not the model's.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from autoprune.graph import Layer, Structure
from autoprune.tasks import batch_length, device_of, eval_mode, forward

_SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)
_FITTED_SHARES = (1.0, 0.75, 0.5, 0.35, 0.25)
_FITTED_AT_RANDOM, _CHECKED = 8, 6
_OF_A_MODEL = 8
_BLOCKS = (1, 4, 8, 16)
_MOST_CALLS, _SECONDS, _SAMPLE = 30, 0.01, 1e-4
"""Of one layer at one size: so many calls, or so many seconds, in samples of at least so many."""
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LayerTimes:
    """Times of the layers of one structure on one device.

    layers: names, L of them. read, written: (L, K) widths of the grid, ascending. ms: (L, K, K). positions: (L,) places
    at which each layer writes, of all its calls. block: widths count as the next multiple of it. base_ms: of the base
    model as measured, whole_ms: as predicted. error: the mean relative error of models that nothing was fitted to.
    """

    layers: tuple[str, ...]
    read: FloatArray
    written: FloatArray
    ms: FloatArray
    positions: FloatArray
    block: int
    scale: float
    rest: float
    per_activation: float
    base_ms: float
    whole_ms: float
    error: float
    device: str
    threads: int

    def predicted_ms(self, structure: Structure, counts: NDArray[Any]) -> float:
        """Return the time of the model with counts (G,) kept units of a structure, which may be cut already.

        Raises KeyError for a layer that was not timed.
        """
        layers_ms, activations = self._terms(structure, counts)
        return self.scale * layers_ms + self.rest + self.per_activation * activations

    def fraction(self, structure: Structure, counts: NDArray[Any]) -> float:
        """Return the same as a share of the base model's predicted time."""
        return self.predicted_ms(structure, counts) / self.whole_ms

    def _terms(self, structure: Structure, counts: NDArray[Any]) -> tuple[float, float]:
        rows = self._rows(structure)
        full = np.stack([self.read[rows, -1], self.written[rows, -1]], axis=1)
        widths = structure.layer_widths(counts)
        widths = np.minimum(np.ceil(widths / self.block - 1e-9) * self.block, np.maximum(full, widths))
        activations = float(widths[:, 1] @ self.positions[rows])
        return float(self._interpolated(rows, widths).sum()), activations

    def _rows(self, structure: Structure) -> IntArray:
        names = tuple(layer.name for layer in structure.layers)
        if names == self.layers:
            return np.arange(len(names))
        known = {name: i for i, name in enumerate(self.layers)}
        return np.array([known[name] for name in names], dtype=np.int64)

    def _interpolated(self, rows: IntArray, widths: FloatArray) -> FloatArray:
        """Return the times (L,) at widths (L, 2)."""
        i, x = _place(self.read[rows], widths[:, 0])
        j, y = _place(self.written[rows], widths[:, 1])
        corner = [[self.ms[rows, i + a, j + b] for b in (0, 1)] for a in (0, 1)]
        low = corner[0][0] * (1 - y) + corner[0][1] * y
        high = corner[1][0] * (1 - y) + corner[1][1] * y
        return np.asarray(low * (1 - x) + high * x, dtype=np.float64)

    def plain(self) -> dict[str, Any]:
        """Return plain data that `parse` reads back."""
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in asdict(self).items()}

    @classmethod
    def parse(cls, data: dict[str, Any]) -> Self:
        """Return the times in plain data."""
        arrays = {name: np.array(data[name], dtype=np.float64) for name in ("read", "written", "ms", "positions")}
        return cls(**(data | arrays | {"layers": tuple(data["layers"])}))


def _place(grid: FloatArray, widths: FloatArray) -> tuple[IntArray, FloatArray]:
    """Return where widths (L,) lie in their rows of a grid (L, K): the point below, and the share of the way on."""
    below = np.clip((grid <= widths[:, None] + 1e-9).sum(axis=1) - 1, 0, grid.shape[1] - 2)
    at = np.arange(len(grid))
    low, high = grid[at, below], grid[at, below + 1]
    share = np.where(high > low, (widths - low) / np.maximum(high - low, 1e-9), 0.0)
    return below, np.clip(share, 0.0, 1.0)


def time_layers(
    model: nn.Module,
    structure: Structure,
    inputs: Any,
    *,
    channels_last: bool = False,
    seed: int = 0,
) -> LayerTimes:
    """Time a model's layers, and cut models to fit the rest to, with these inputs, where the model is.

    channels_last: the model runs in that memory layout.
    """
    device = device_of(model)
    batch = batch_length(inputs)
    full, least = structure.layer_widths(structure.sizes), structure.layer_widths(structure.min_counts)
    read = np.array([_grid(layer, full[i, 0], least[i, 0]) for i, layer in enumerate(structure.layers)])
    written = np.array([_grid(layer, full[i, 1], least[i, 1]) for i, layer in enumerate(structure.layers)])
    timed = [
        _timed(layer, read[i], written[i], batch, device, channels_last) for i, layer in enumerate(structure.layers)
    ]
    alone = LayerTimes(
        layers=tuple(layer.name for layer in structure.layers),
        read=read,
        written=written,
        ms=np.array(timed).reshape(len(read), len(_SHARES), len(_SHARES)),
        positions=np.array(
            [sum(float(np.prod(call.out_positions)) for call in layer.calls) for layer in structure.layers]
        ),
        block=1,
        scale=1.0,
        rest=0.0,
        per_activation=0.0,
        base_ms=_of_model(model, inputs),
        whole_ms=0.0,
        error=0.0,
        device=str(device),
        threads=torch.get_num_threads(),
    )
    return _fitted(alone, model, structure, inputs, channels_last, np.random.default_rng(seed))


def _fitted(
    alone: LayerTimes,
    model: nn.Module,
    structure: Structure,
    inputs: Any,
    channels_last: bool,
    draws: np.random.Generator,
) -> LayerTimes:
    whole = structure.sizes
    shares = [np.full(len(whole), share) for share in _FITTED_SHARES]
    shares += [draws.uniform(0.2, 1.0, len(whole)) for _ in range(_FITTED_AT_RANDOM + _CHECKED)]
    counts = [np.clip(np.round(whole * share), structure.min_counts, whole).astype(np.int64) for share in shares]
    counts = [_on_grid(structure, one) for one in counts]
    seen = np.array([_of_cut(model, structure, one, inputs, channels_last) for one in counts])
    known = len(counts) - _CHECKED
    best, least = alone, float("inf")
    for block in _BLOCKS:
        rounding = dataclasses.replace(alone, block=block)
        terms = np.array([(t, 1.0, a) for t, a in (rounding._terms(structure, one) for one in counts)])
        fit, left = _least_squares(terms[:known] / seen[:known, None], np.ones(known))
        if left < least:
            told = np.array(fit) @ terms.T
            least, best = (
                left,
                dataclasses.replace(
                    rounding,
                    scale=fit[0],
                    rest=fit[1],
                    per_activation=fit[2],
                    # the first of the models that were fitted is whole
                    whole_ms=float(told[0]),
                    error=float(np.abs(told[known:] / seen[known:] - 1).mean()),
                ),
            )
    return best


def _on_grid(structure: Structure, counts: IntArray) -> IntArray:
    rounded = counts // structure.round_to * structure.round_to
    return np.where(counts >= structure.sizes, counts, np.maximum(rounded, structure.min_counts))


def _of_cut(
    model: nn.Module,
    structure: Structure,
    counts: IntArray,
    inputs: Any,
    channels_last: bool,
) -> float:
    keep = {name: list(range(int(count))) for name, count in zip(structure.names, counts, strict=True)}
    cut = structure.cut(model, keep)
    return _of_model(cut.to(memory_format=torch.channels_last) if channels_last else cut, inputs)


def _of_model(model: nn.Module, inputs: Any) -> float:
    with eval_mode(model):
        return _shortest_ms(lambda: forward(model, inputs), device_of(model), _OF_A_MODEL)


def _least_squares(columns: FloatArray, wanted: FloatArray) -> tuple[tuple[float, float, float], float]:
    """Return the best coefficients, none below 0, by trying every set of columns, and the squared error left."""
    best, least = np.zeros(3), float("inf")
    for size in (1, 2, 3):
        for used in itertools.combinations(range(3), size):
            found, *_ = np.linalg.lstsq(columns[:, used], wanted, rcond=None)
            left = float(np.square(columns[:, used] @ found - wanted).sum())
            if (found >= 0).all() and left < least - 1e-12:
                best, least = np.zeros(3), left
                best[list(used)] = found
    return (float(best[0]), float(best[1]), float(best[2])), least


def _grid(layer: Layer, full: float, least: float) -> list[float]:
    """Return the widths, ascending, at which a layer is timed on one side; all of them full where nothing varies."""
    if least >= full:
        return [full] * len(_SHARES)
    step = max(1, layer.out_features // layer.in_features) if _is_depthwise(layer) else layer.groups
    return [float(max(step, round(full * share / step) * step)) for share in _SHARES]


def _is_depthwise(layer: Layer) -> bool:
    return layer.groups > 1 and layer.groups == layer.in_features


def _timed(
    layer: Layer, read: FloatArray, written: FloatArray, batch: int, device: torch.device, channels_last: bool
) -> FloatArray:
    """Return the times (K, K) in milliseconds of all calls of a layer, at widths read (K,) and written (K,)."""
    known: dict[tuple[int, int], float] = {}
    for i, wide in itertools.product(read, written):
        if _is_depthwise(layer):
            # both sides are the same channels: only what is written counts
            i = wide * layer.in_features / layer.out_features
        size = round(i), round(wide)
        if size not in known:
            known[size] = _of_layer(layer, *size, batch, device, channels_last)
    found = np.empty((len(read), len(written)))
    for a, i in enumerate(read):
        for b, wide in enumerate(written):
            first = wide * layer.in_features / layer.out_features if _is_depthwise(layer) else i
            found[a, b] = known[round(first), round(wide)]
    return found


def _of_layer(layer: Layer, read: int, written: int, batch: int, device: torch.device, channels_last: bool) -> float:
    groups = read if _is_depthwise(layer) else layer.groups
    total = 0.0
    for call in layer.calls:
        if layer.kind == "linear":
            x = torch.randn(batch, *call.in_positions, read, device=device)
            weight = torch.randn(written, read, device=device)
            total += _shortest_ms(lambda x=x, w=weight: F.linear(x, w), device)  # type: ignore[misc]
            continue
        transposed = layer.kind == "conv_transpose"
        shape = (read, written // groups) if transposed else (written, read // groups)
        x = _laid(torch.randn(batch, read, *call.in_positions, device=device), channels_last)
        weight = _laid(torch.randn(*shape, *layer.kernel, device=device), channels_last)
        bias = torch.zeros(written, device=device)
        options = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation, "groups": groups}
        name = f"conv{'_transpose' if transposed else ''}{len(layer.kernel)}d"
        run = getattr(F, name)
        total += _shortest_ms(lambda r=run, x=x, w=weight, b=bias, o=options: r(x, w, b, **o), device)  # type: ignore[misc]
    return total


def _laid(tensor: Tensor, channels_last: bool) -> Tensor:
    return tensor.to(memory_format=torch.channels_last) if channels_last and tensor.dim() == 4 else tensor


def _shortest_ms(run: Callable[[], object], device: torch.device, least_calls: int = 3) -> float:
    with torch.inference_mode():
        once = min(_seconds(run, 1, device) for _ in range(2))
        inner = max(1, min(100, int(_SAMPLE / max(once, 1e-9))))
        calls = max(least_calls, min(_MOST_CALLS, int(_SECONDS / max(inner * once, 1e-9))))
        return 1000 * min(_seconds(run, inner, device) for _ in range(calls))


def _seconds(run: Callable[[], object], calls: int, device: torch.device) -> float:
    begin = time.perf_counter()
    for _ in range(calls):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - begin) / calls
