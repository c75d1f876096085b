"""What runs a model: PyTorch as it stands, compiled, or onnxruntime. Each as a call that does one forward pass."""

from __future__ import annotations

import importlib.metadata
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.data.split import map_tensors
from autoprune.errors import BadInput, Failure, MissingDependency, unknown_name
from autoprune.programs import OnnxModel, need_onnx, write
from autoprune.tasks import forward

Call = Callable[[], object]


def prepared(backend: str, model: nn.Module, inputs: Any, *, threads: int, device: str) -> Call:
    """Return a call that runs a model on these inputs, and is over when the result is there.

    Nothing but the forward pass is left to the call: the model is moved, compiled or exported now, inputs are where it
    runs. Raises UnknownName, BadInput for a device that the back end does not have, MissingDependency, Failure.
    """
    if backend not in BACKENDS:
        raise unknown_name("back end", backend, BACKENDS)
    return _MAKERS[backend](model.eval(), inputs, threads, device)


def file_call(content: bytes, inputs: Any, *, threads: int) -> Call:
    """Return a call that runs an ONNX file, given by its content, by onnxruntime on the CPU."""
    model = OnnxModel(content, threads)
    feeds = model.feeds(inputs)
    return lambda: model.call(feeds)


def versions(backend: str) -> dict[str, str]:
    """Return the versions of what runs the model."""
    found = {"torch": str(torch.__version__)}
    return found | ({"onnxruntime": importlib.metadata.version("onnxruntime")} if backend == "onnxruntime" else {})


def _eager(model: nn.Module, inputs: Any, threads: int, device: str) -> Call:
    own, given = model.to(device), map_tensors(inputs, lambda t: t.to(device))
    on_gpu = torch.device(device).type == "cuda"

    def call() -> None:
        with torch.inference_mode():
            forward(own, given)
        if on_gpu:
            torch.cuda.synchronize(device)

    return call


def _compiled(model: nn.Module, inputs: Any, threads: int, device: str) -> Call:
    compiled: Any = torch.compile(model.to(device), dynamic=False)
    call = _eager(compiled, inputs, threads, device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call()
    except Exception as error:
        if "compiler" in str(error).lower() and "not found" in str(error).lower():
            raise MissingDependency("torch.compile needs a C++ compiler on the path, such as g++") from error
        reason = str(error).strip().splitlines()[:1] or [""]
        raise Failure(
            f"torch.compile cannot run {type(model).__name__}: {type(error).__name__}: {reason[0]}"
        ) from error
    return call


def _onnxruntime(model: nn.Module, inputs: Any, threads: int, device: str) -> Call:
    if torch.device(device).type != "cpu":
        raise BadInput(f"onnxruntime is measured on the CPU only, got device {device!r}")
    need_onnx("running models by onnxruntime")
    with tempfile.TemporaryDirectory(prefix="autoprune-") as folder:
        path = Path(folder) / "model.onnx"
        write(model, path, "onnx", inputs)
        return file_call(path.read_bytes(), inputs, threads=threads)


_MAKERS: Mapping[str, Callable[[nn.Module, Any, int, str], Call]] = {
    "eager": _eager,
    "compile": _compiled,
    "onnxruntime": _onnxruntime,
}
BACKENDS = tuple(_MAKERS)
