"""Models as files that run without autoprune, ONNX and torch.export's .pt2, and ONNX files as modules.

Whatever is written is loaded again and must agree with the torch model at batch sizes 1 and 3.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autoprune.data.split import map_tensors
from autoprune.errors import CheckFailed, Failure, MissingDependency
from autoprune.graph import causal
from autoprune.tasks import forward

Format = Literal["onnx", "pt2"]
FORMATS: tuple[Format, ...] = ("onnx", "pt2")
BATCH_SIZES = (1, 3)
"""Batch sizes at which a written file is compared with its model."""

# The largest difference of an output allowed, relative to the largest output or to 1.
_TOLERANCE = 1e-4
_LOW_PRECISION_TOLERANCE = 2e-2
# What a file may hold besides the weights: the graph, names, padding.
_LARGEST_GROWTH, _LARGEST_EXTRA = 1.3, 2**21
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

Run = Callable[[Any], list[Tensor]]


def write(model: nn.Module, path: Path, format: Format | str, example_inputs: Any) -> float:
    """Export a model to a file, load the file again, and return the largest relative difference of outputs.

    Raises MissingDependency, Failure, CheckFailed.
    """
    if format == "onnx":
        need_onnx("exporting to ONNX")
    plain = copy.deepcopy(model).cpu().eval()
    inputs = map_tensors(example_inputs, lambda t: t.detach().cpu())
    with quiet(), torch.no_grad():
        try:
            program = program_of(plain, inputs)
            run = _write_onnx(program, inputs, path) if format == "onnx" else _write_pt2(program, path)
        except Exception as error:
            raise Failure(f"{type(model).__name__} cannot be exported as {format}: {_told(error)}") from error
        return _largest_difference(plain, run, inputs, format)


class OnnxModel(nn.Module):
    """An ONNX file as a module: forward only, on the CPU, without parameters.

    file: a path, or the file's content. It takes what the exported model took, and returns its one output, or all of
    them as a tuple. threads: of one call, as many as torch uses when None. Raises MissingDependency.
    """

    def __init__(self, file: Path | bytes, threads: int | None = None) -> None:
        super().__init__()
        need_onnx("running ONNX files")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or torch.get_num_threads()
        given = file if isinstance(file, bytes) else str(file)
        self._session = onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
        self._names = [i.name for i in self._session.get_inputs()]

    def forward(self, *positional: Tensor, **by_keyword: Tensor) -> Any:
        """Return the output of one batch: a tensor, or a tuple of them."""
        found = tuple(torch.from_numpy(value) for value in self._session.run(None, self._fed(positional, by_keyword)))
        return found[0] if len(found) == 1 else found

    def feeds(self, inputs: Any) -> dict[str, NDArray[np.generic]]:
        """Return the inputs of a batch as the file names them: arrays that `call` takes."""
        return self._fed(*_arguments(inputs))

    def call(self, feeds: Mapping[str, NDArray[np.generic]]) -> None:
        """Run the file on arrays, and nothing else: what a timing wants."""
        self._session.run(None, feeds)

    def _fed(self, positional: tuple[Tensor, ...], by_keyword: Mapping[str, Tensor]) -> dict[str, NDArray[np.generic]]:
        named = set(self._names) <= set(by_keyword)
        values = [by_keyword[n] for n in self._names] if named else [*positional, *by_keyword.values()]
        return {name: value.cpu().numpy() for name, value in zip(self._names, values, strict=True)}


def program_of(model: nn.Module, inputs: Any) -> torch.export.ExportedProgram:
    """Export a model, in the mode that it is in, with a free batch size. Raises whatever torch.export raises."""
    # torch.export takes a size of 1 for a constant; two samples keep the batch size free.
    positional, by_keyword = _arguments(_samples(inputs, 2))
    shapes = [_free_batch(value) for value in positional] or None
    named = {name: _free_batch(value) for name, value in by_keyword.items()}
    with causal.undetected():
        return torch.export.export(
            model, positional, by_keyword or None, dynamic_shapes=named or (tuple(shapes) if shapes else None)
        )


def _free_batch(value: Tensor) -> dict[int, Any]:
    return {0: torch.export.Dim.DYNAMIC} if value.ndim else {}


def _write_pt2(program: torch.export.ExportedProgram, path: Path) -> Run:
    torch.export.save(program, path)
    again = torch.export.load(path).module()
    return lambda inputs: _leaves(forward(again, inputs))


def _write_onnx(program: torch.export.ExportedProgram, inputs: Any, path: Path) -> Run:
    torch.onnx.export(program, (), str(path), dynamo=True, external_data=False, verbose=False)
    again = OnnxModel(path)
    return lambda batch: _leaves(forward(again, batch))


def _largest_difference(model: nn.Module, run: Run, inputs: Any, format: str) -> float:
    worst = 0.0
    for size in BATCH_SIZES:
        batch = _samples(inputs, size)
        expected = _leaves(forward(model, batch))
        try:
            found = run(batch)
        except Exception as error:
            raise CheckFailed(f"the {format} file fails at batch size {size}: {_told(error)}") from error
        worst = max(worst, _difference(expected, found, size, format))
    if worst > tolerance_of(model):
        raise CheckFailed(
            f"the {format} file differs from the model by {worst:.2g} of its largest output; "
            f"allowed is {tolerance_of(model):g}"
        )
    return worst


def _difference(expected: list[Tensor], found: list[Tensor], size: int, format: str) -> float:
    wanted_shapes, found_shapes = ([tuple(t.shape) for t in side] for side in (expected, found))
    if wanted_shapes != found_shapes:
        raise CheckFailed(
            f"at batch size {size} the {format} file gives outputs of shapes {found_shapes}, the model {wanted_shapes}"
        )
    worst = 0.0
    for a, b in zip(expected, found, strict=True):
        if a.numel():
            scale = max(1.0, float(a.double().abs().max()))
            worst = max(worst, float((a.double() - b.double()).abs().max()) / scale)
    return worst


def check_size(path: Path, weight_bytes: int) -> None:
    """Raises CheckFailed for a file that is larger than so many bytes of weights allow."""
    allowed = int(weight_bytes * _LARGEST_GROWTH + _LARGEST_EXTRA)
    if path.stat().st_size > allowed:
        raise CheckFailed(
            f"the export has {path.stat().st_size} bytes, but the compressed weights only {weight_bytes}; "
            f"at most {allowed} are expected"
        )


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of parameters and buffers, shared ones once."""
    distinct = {id(t): t for t in model.state_dict(keep_vars=True).values()}
    return sum(t.numel() * t.element_size() for t in distinct.values())


def tolerance_of(model: nn.Module) -> float:
    """Return the largest difference allowed between a model and its file."""
    low = any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters())
    return _LOW_PRECISION_TOLERANCE if low else _TOLERANCE


def _samples(inputs: Any, size: int) -> Any:
    """Return a batch of that many samples, taken from the inputs in turn."""
    return map_tensors(inputs, lambda t: t[torch.arange(size) % len(t)] if t.ndim else t)


def _arguments(inputs: Any) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    if isinstance(inputs, dict):
        return (), inputs
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def _leaves(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, Mapping) else output
    return [leaf for value in values if value is not None for leaf in _leaves(value)]


def need_onnx(what: str) -> None:
    """Raises MissingDependency, with the extra to install, unless the ONNX packages are there.

    what: the work that needs them.
    """
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependency(
            f"{what} needs {', '.join(missing)}. Install them: pip install 'autoprune[export]'"
            "; pt2 files need nothing more"
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' progress reports and warnings from the user; errors still come as exceptions."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _told(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
