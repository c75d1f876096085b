"""Compressed models in formats that run without autoprune: ONNX and torch.export's .pt2.

Every export is checked before it takes its place: the written file is loaded again and must agree with the
torch model at batch sizes 1 and 3, and must not be larger than the compressed weights allow. A quantised file cannot
agree to that degree: it is measured on the artefact's data instead, beside the float model.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoprune import artefact
from autoprune.data import Data
from autoprune.deployment.quantised import measured_on, quantise
from autoprune.errors import BadInput, WrongArtefact
from autoprune.files import write_bytes
from autoprune.programs import BATCH_SIZES, FORMATS, check_size, need_onnx, tolerance_of, weight_bytes, write
from autoprune.quantisation import Quantisation
from autoprune.tasks import Task, evaluate

QUANTISED = "model.int8.onnx"
"""The quantised file in an artefact's folder."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A checked export. Sizes in bytes; `base_weight_bytes` is None where the base model cannot be built.

    largest_difference: of any output at the checked batch sizes, relative to the largest output or to 1.
    """

    path: Path
    format: str
    file_bytes: int
    weight_bytes: int
    base_weight_bytes: int | None
    largest_difference: float
    tolerance: float
    batch_sizes: tuple[int, ...]


def export(folder: str | Path, format: str, example_inputs: Any) -> Exported:
    """Export an artefact as `model.onnx` or `model.pt2` into its folder, with a free batch size.

    example_inputs: a tensor, a tuple (positional) or a dict (keyword) of tensors whose first axis counts
    samples.
    Raises BadInput for an unknown format, MissingDependency, WrongArtefact, Failure when the model cannot be
    exported, and CheckFailed when the export does not agree with the model.
    """
    if format not in FORMATS:
        raise BadInput(f"export format must be one of {', '.join(FORMATS)}, got {format!r}")
    if format == "onnx":
        need_onnx("exporting to ONNX")
    model = artefact.load(folder)
    target = Path(folder) / f"model.{format}"
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export.") as temporary:
        written = Path(temporary) / target.name
        difference = write(model, written, format, example_inputs)
        own_bytes = weight_bytes(model)
        check_size(written, own_bytes)
        written.replace(target)
    return Exported(
        path=target,
        format=format,
        file_bytes=target.stat().st_size,
        weight_bytes=own_bytes,
        base_weight_bytes=_base_weight_bytes(folder),
        largest_difference=difference,
        tolerance=tolerance_of(model),
        batch_sizes=BATCH_SIZES,
    )


@dataclass(frozen=True, kw_only=True)
class QuantisedExport:
    """A quantised file, and how it compares with the float model on the same samples. Sizes in bytes."""

    path: Path
    method: dict[str, Any]
    file_bytes: int
    float_file_bytes: int
    split: str
    count: int
    accuracy: float
    float_accuracy: float
    calibration_samples: int


def export_quantised(
    folder: str | Path, method: Quantisation, data: Data, task: Task, *, seed: int = 0, batch_size: int = 512
) -> QuantisedExport:
    """Quantise an artefact into its folder, calibrated on its training split and measured on its test split.

    Without a test split it is measured on the validation split. Raises as `deployment.quantised.quantise` does.
    """
    model = artefact.load(folder)
    made = quantise(model, method, data, seed)
    name, split = ("validation", data.validation) if data.test is None else ("test", data.test)
    found = measured_on(made, split, task, batch_size)
    whole = evaluate(model, split, task, batch_size)
    target = Path(folder) / QUANTISED
    write_bytes(target, made.content)
    return QuantisedExport(
        path=target,
        method=made.method,
        file_bytes=made.bytes,
        float_file_bytes=made.float_bytes,
        split=name,
        count=whole.count,
        accuracy=found["int8_accuracy"],
        float_accuracy=whole.accuracy,
        calibration_samples=made.calibration_samples,
    )


def _base_weight_bytes(folder: str | Path) -> int | None:
    try:
        return weight_bytes(artefact.base_model(folder))
    except WrongArtefact:
        return None
