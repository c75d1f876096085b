"""Measured speed of compressed models against their base model, on the back end that will run them."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import torch
from torch import nn

from autoprune import machine, threads
from autoprune.cost.resources import FLOAT_BITS, Resources, count_resources
from autoprune.cost.timing import Clock, Protocol, Ratio, Series, alone_on_machine, speed_up, take_times
from autoprune.data.split import map_tensors
from autoprune.deployment import backends
from autoprune.deployment.quantised import Quantised, method_of
from autoprune.errors import BadInput
from autoprune.tasks import batch_length

FLOAT = "float32"
ONNXRUNTIME = "onnxruntime"
# FLOPs that fell by less are not said to have fallen.
_FELL = 0.99


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What times depend on besides the model; only times of one setting compare.

    batch_size: samples of one call. machine: its processor, or GPU. versions: of what runs the model.
    """

    backend: str
    batch_size: int
    threads: int
    device: str
    input_shape: tuple[int, ...]
    machine: str
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """A short name for tables."""
        return f"{self.backend}, batch {self.batch_size}"

    @classmethod
    def of(cls, backend: str, inputs: Any, *, threads: int, device: str) -> Self:
        """Return the setting of these inputs on this machine."""
        found = machine.describe()
        on_gpu = torch.device(device).type == "cuda"
        shapes = [tuple(t.shape[1:]) for t in _tensors(inputs)]
        return cls(
            backend=backend,
            batch_size=batch_length(inputs),
            threads=threads,
            device=device,
            input_shape=shapes[0] if shapes else (),
            machine=found.get("GPUs" if on_gpu else "processor", ""),
            versions=backends.versions(backend),
        )


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Times of one model in milliseconds: median, 10th and 90th percentile, interquartile range, over `calls` calls."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    iqr_ms: float
    calls: int
    noisy: bool

    @classmethod
    def of(cls, series: Series) -> Self:
        """Return the summary of a series."""
        return cls(
            median_ms=series.median_ms,
            p10_ms=series.percentile_ms(10),
            p90_ms=series.percentile_ms(90),
            iqr_ms=series.iqr_ms,
            calls=series.count,
            noisy=series.noisy,
        )


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One model in one setting against the base model in float32, timed in turns in the same process.

    precision: float32, or the method that quantised it. speed_up: the base model's median over this one's, with a 95 %
    interval. accuracy: of the very file that was timed, on the validation split, where it is quantised.
    """

    setting: Setting
    precision: str
    own: Timed
    base: Timed
    speed_up: Ratio
    resources: Resources
    base_resources: Resources
    accuracy: float | None = None
    file_bytes: int | None = None
    at: str = ""

    @property
    def flops_fraction(self) -> float:
        """FLOPs of this model in those of the base model."""
        return self.resources.flops / self.base_resources.flops

    @property
    def gained_nothing(self) -> bool:
        """Whether FLOPs fell and, beyond the scatter of the times, the time did not."""
        return self.flops_fraction < _FELL and not self.speed_up.is_faster

    @property
    def is_noisy(self) -> bool:
        """Whether one of the two series scattered too much even when it was repeated."""
        return self.own.noisy or self.base.noisy

    def plain(self) -> dict[str, Any]:
        """Return plain data that `parse` reads back."""
        return asdict(self)

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Self:
        """Return the measurement in plain data."""
        shape = tuple(data["setting"]["input_shape"])
        setting = Setting(**(dict(data["setting"]) | {"input_shape": shape}))
        made = {
            "setting": setting,
            "own": Timed(**data["own"]),
            "base": Timed(**data["base"]),
            "speed_up": Ratio(**data["speed_up"]),
            "resources": Resources(**data["resources"]),
            "base_resources": Resources(**data["base_resources"]),
        }
        return cls(**(dict(data) | made))


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A compressed model, and its quantised file with that file's accuracy where there is one."""

    model: nn.Module
    quantised: Quantised | None = None
    int8_accuracy: float | None = None


def measure_speed(
    base: nn.Module,
    candidates: Sequence[Candidate],
    inputs: Any,
    backend: str,
    *,
    threads_used: int = 1,
    device: str = "cpu",
    protocol: Protocol | None = None,
    clock: Clock = time.perf_counter,
) -> tuple[tuple[Measured, ...], ...]:
    """Time models against their base model on one back end; of each the float32 model first, then its quantised file.

    inputs: the batch of every call. A quantised file is timed where the back end is onnxruntime and left out elsewhere.
    Models are moved and left in eval mode. Raises as `backends.prepared` does.
    """
    setting = Setting.of(backend, inputs, threads=threads_used, device=device)
    with threads.limited(threads_used):
        counted = [_resources(one, inputs) for one in (Candidate(model=base), *candidates)]
        call = backends.prepared(backend, base, inputs, threads=threads_used, device=device)
        found = []
        for candidate, resources in zip(candidates, counted[1:], strict=True):
            runs = {"": call} | _calls(candidate, setting, inputs)
            with alone_on_machine():
                times = take_times(runs, protocol, clock)
            found.append(_measured(candidate, setting, times, resources, counted[0][FLOAT]))
    return tuple(found)


def check_one_setting(found: Sequence[Measured]) -> None:
    """Refuse to put times side by side that do not compare. Raises BadInput."""
    settings = {str(asdict(one.setting)) for one in found}
    if len(settings) > 1:
        told = "; ".join(sorted(settings)[:2])
        raise BadInput(f"times of different settings do not compare and cannot be on one axis: {told}")


def _calls(candidate: Candidate, setting: Setting, inputs: Any) -> dict[str, backends.Call]:
    made = {
        FLOAT: backends.prepared(
            setting.backend, candidate.model, inputs, threads=setting.threads, device=setting.device
        )
    }
    if candidate.quantised is not None and setting.backend == ONNXRUNTIME:
        name = candidate.quantised.method["name"]
        made[name] = backends.file_call(candidate.quantised.content, inputs, threads=setting.threads)
    return made


def _resources(candidate: Candidate, inputs: Any) -> dict[str, Resources]:
    bits = {FLOAT: FLOAT_BITS}
    if candidate.quantised is not None:
        name = candidate.quantised.method["name"]
        method = method_of(name)
        bits[name] = (method.bits, method.activation_bits)
    found = count_resources(candidate.model.cpu(), _first(inputs), tuple(bits.values()))
    return dict(zip(bits, found, strict=True))


def _measured(
    candidate: Candidate,
    setting: Setting,
    times: Mapping[str, Series],
    resources: Mapping[str, Resources],
    base: Resources,
) -> tuple[Measured, ...]:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return tuple(
        Measured(
            setting=setting,
            precision=precision,
            own=Timed.of(series),
            base=Timed.of(times[""]),
            speed_up=speed_up(times[""], series),
            resources=resources[precision],
            base_resources=base,
            accuracy=None if precision == FLOAT else candidate.int8_accuracy,
            file_bytes=None if precision == FLOAT or candidate.quantised is None else candidate.quantised.bytes,
            at=now,
        )
        for precision, series in times.items()
        if precision
    )


def _first(inputs: Any) -> Any:
    return map_tensors(inputs, lambda t: t[:1].cpu() if t.ndim else t.cpu())


def _tensors(inputs: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    map_tensors(inputs, found.append)
    return found
