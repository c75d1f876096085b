"""Compressed models in formats that run without autoprune: ONNX and torch.export's .pt2.

Every export is checked before it takes its place: the written file is loaded again and must agree with the
torch model at batch sizes 1 and 3, and must not be larger than the compressed weights allow.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from autoprune import artefact
from autoprune.data.split import map_tensors
from autoprune.errors import BadInput, CheckFailed, Failure, MissingDependency, WrongArtefact
from autoprune.tasks import forward

Format = Literal["onnx", "pt2"]
FORMATS: tuple[Format, ...] = ("onnx", "pt2")

_BATCH_SIZES = (1, 3)
# The largest difference of an output allowed, relative to the largest output or to 1.
_TOLERANCE = 1e-4
_LOW_PRECISION_TOLERANCE = 2e-2
# What a file may hold besides the weights: the graph, names, padding.
_LARGEST_GROWTH, _LARGEST_EXTRA = 1.3, 2**21
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

Run = Callable[[Any], list[Tensor]]


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
        _need_onnx()
    model = artefact.load(folder)
    target = Path(folder) / f"model.{format}"
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export.") as temporary:
        written = Path(temporary) / target.name
        difference = write(model, written, format, example_inputs)
        weight_bytes = _weight_bytes(model)
        _check_size(written, weight_bytes)
        written.replace(target)
    return Exported(
        path=target,
        format=format,
        file_bytes=target.stat().st_size,
        weight_bytes=weight_bytes,
        base_weight_bytes=_base_weight_bytes(folder),
        largest_difference=difference,
        tolerance=_tolerance(model),
        batch_sizes=_BATCH_SIZES,
    )


def write(model: nn.Module, path: Path, format: Format | str, example_inputs: Any) -> float:
    """Export a model to a file, load the file again, and return the largest relative difference of outputs.

    Raises Failure, CheckFailed.
    """
    plain = copy.deepcopy(model).cpu().eval()
    inputs = map_tensors(example_inputs, lambda t: t.detach().cpu())
    with _quiet(), torch.no_grad():
        try:
            program = _program(plain, inputs)
            run = _write_onnx(program, inputs, path) if format == "onnx" else _write_pt2(program, path)
        except Exception as error:
            raise Failure(f"{type(model).__name__} cannot be exported as {format}: {_told(error)}") from error
        return _largest_difference(plain, run, inputs, format)


def _program(model: nn.Module, inputs: Any) -> torch.export.ExportedProgram:
    # torch.export takes a size of 1 for a constant; two samples keep the batch size free.
    positional, by_keyword = _arguments(_samples(inputs, 2))
    shapes = [_free_batch(value) for value in positional] or None
    named = {name: _free_batch(value) for name, value in by_keyword.items()}
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
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]

    def run(batch: Any) -> list[Tensor]:
        positional, by_keyword = _arguments(batch)
        values = (
            [by_keyword[n] for n in names] if set(names) <= set(by_keyword) else [*positional, *by_keyword.values()]
        )
        fed = {name: value.numpy() for name, value in zip(names, values, strict=True)}
        return [torch.from_numpy(found) for found in session.run(None, fed)]

    return run


def _largest_difference(model: nn.Module, run: Run, inputs: Any, format: str) -> float:
    worst = 0.0
    for size in _BATCH_SIZES:
        batch = _samples(inputs, size)
        expected = _leaves(forward(model, batch))
        try:
            found = run(batch)
        except Exception as error:
            raise CheckFailed(f"the {format} file fails at batch size {size}: {_told(error)}") from error
        worst = max(worst, _difference(expected, found, size, format))
    if worst > _tolerance(model):
        raise CheckFailed(
            f"the {format} file differs from the model by {worst:.2g} of its largest output; "
            f"allowed is {_tolerance(model):g}"
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


def _check_size(path: Path, weight_bytes: int) -> None:
    allowed = int(weight_bytes * _LARGEST_GROWTH + _LARGEST_EXTRA)
    if path.stat().st_size > allowed:
        raise CheckFailed(
            f"the export has {path.stat().st_size} bytes, but the compressed weights only {weight_bytes}; "
            f"at most {allowed} are expected"
        )


def _base_weight_bytes(folder: str | Path) -> int | None:
    try:
        return _weight_bytes(artefact.base_model(folder))
    except WrongArtefact:
        return None


def _weight_bytes(model: nn.Module) -> int:
    distinct = {id(t): t for t in model.state_dict(keep_vars=True).values()}
    return sum(t.numel() * t.element_size() for t in distinct.values())


def _tolerance(model: nn.Module) -> float:
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


def _need_onnx() -> None:
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependency(
            f"exporting to ONNX needs {', '.join(missing)}. Install them: pip install 'autoprune[export]'; "
            "or export to pt2, which needs nothing more."
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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
