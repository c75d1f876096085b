"""Compressed models in formats that run without autoprune: ONNX and torch.export's .pt2.

Every export is checked before it takes its place: the written file is loaded again and must agree with the
torch model at batch sizes 1 and 3, and must not be larger than the compressed weights allow.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoprune import artefact
from autoprune.errors import BadInput, WrongArtefact
from autoprune.programs import BATCH_SIZES, FORMATS, check_size, need_onnx, tolerance_of, weight_bytes, write


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


def _base_weight_bytes(folder: str | Path) -> int | None:
    try:
        return weight_bytes(artefact.base_model(folder))
    except WrongArtefact:
        return None
