"""What both ways of onnxruntime's quantiser need."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autoprune.quantisation._base import Batches


@contextlib.contextmanager
def folded(source: Path) -> Iterator[Path]:
    """Yield a copy of an ONNX file with its shapes written out and batch norms folded into convolutions."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="autoprune-") as folder:
        plain = Path(folder) / "folded.onnx"
        with quietly():
            quant_pre_process(source, plain)
        yield plain


def reader(batches: Batches) -> Any:
    """Return the batches as the quantiser wants to read them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(batches)

        def get_next(self) -> Any:
            return next(self._left, None)

    return Reader()


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep the quantiser's progress reports and advice from the user; errors still come as exceptions."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)
