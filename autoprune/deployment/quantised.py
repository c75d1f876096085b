"""A model as a quantised file: written, checked, and measured as that file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from autoprune import rooms
from autoprune.data import Data, Split
from autoprune.data.split import map_tensors
from autoprune.errors import CheckFailed, Failure
from autoprune.programs import OnnxModel, need_onnx, write
from autoprune.quantisation import Quantisation
from autoprune.tasks import Task, evaluate, forward

_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """A quantised model as the content of its ONNX file.

    float_bytes: of the float32 file that it was made from. method: as plain data, by its name.
    """

    content: bytes
    float_bytes: int
    method: dict[str, Any]
    calibration_samples: int

    @property
    def bytes(self) -> int:
        """The size of the file."""
        return len(self.content)

    def model(self, threads: int | None = None) -> OnnxModel:
        """Return the file as a module."""
        return OnnxModel(self.content, threads)


def quantise(model: nn.Module, method: Quantisation, data: Data, seed: int) -> Quantised:
    """Quantise a model; the samples it is calibrated on are of the training split, without augmentation.

    Raises MissingDependency without the ONNX packages, Failure when the model cannot be exported or quantised, and
    CheckFailed when the quantised file does not run or is no smaller than the float one.
    """
    need_onnx(f"quantising by {method.name}")
    samples = min(method.calibration_samples, len(data.train))
    with tempfile.TemporaryDirectory(prefix="autoprune-") as folder:
        plain, small = Path(folder) / "float.onnx", Path(folder) / "small.onnx"
        write(model, plain, "onnx", data.example_inputs)
        try:
            method.quantise(plain, small, _batches(plain, data.train, samples, seed))
        except Exception as error:
            name = type(model).__name__
            raise Failure(f"{method.name} cannot quantise {name}: {type(error).__name__}: {error}") from error
        found = Quantised(
            content=small.read_bytes(),
            float_bytes=plain.stat().st_size,
            method=method.config(),
            calibration_samples=samples,
        )
    _check(found, data.example_inputs)
    return found


def measured_on(
    quantised: Quantised, split: Split, task: Task, batch_size: int, samples: int | None = None
) -> dict[str, float]:
    """Measure a quantised file on a split, or on the same `samples` of it every time; sizes of files in bytes."""
    found = evaluate(quantised.model(), split, task, batch_size, limit=samples)
    return {
        "int8_accuracy": found.accuracy,
        "int8_loss": found.loss,
        "int8_count": float(found.count),
        "int8_bytes": float(quantised.bytes),
        "float_bytes": float(quantised.float_bytes),
    }


def method_of(name: str) -> Quantisation:
    """Return a method of the room by its name, with its defaults. Raises UnknownName."""
    return cast(Quantisation, rooms.build("quantisation", name))


def _batches(file: Path, split: Split, samples: int, seed: int) -> Iterator[dict[str, NDArray[np.generic]]]:
    if samples:
        model = OnnxModel(file)
        for inputs, _ in split.batches(_BATCH, seed=seed, limit=samples):
            yield model.feeds(inputs)


def _check(quantised: Quantised, example_inputs: Any) -> None:
    if quantised.bytes >= quantised.float_bytes:
        raise CheckFailed(
            f"the quantised file has {quantised.bytes} bytes, the float32 one {quantised.float_bytes}: the model has "
            "too few weights for 8 bits to save anything"
        )
    try:
        found = forward(quantised.model(), example_inputs)
    except Exception as error:
        raise CheckFailed(f"the quantised file does not run: {type(error).__name__}: {error}") from error
    finite = list[bool]()
    map_tensors(found, lambda t: finite.append(bool(torch.isfinite(t).all())))
    if not all(finite):
        raise CheckFailed("the quantised file gives values that are not finite")
