"""Say where and why a model failed: module, source line, cause."""

from __future__ import annotations

import contextlib
import importlib
import linecache
import logging
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import torch
from torch import nn

_LIBRARIES = (Path(torch.__file__).parent, Path(__file__).parents[1])
_NOISY = ("torch.fx.experimental.symbolic_shapes", "torch.export._trace", "torch._export.non_strict_utils")


def where(model: nn.Module, error: BaseException) -> str:
    """' in module X (file:line: code)' for the innermost module and line of the model's own code that raised."""
    path = failing_module(model, error)
    line = failing_line(error)
    return (f" in module {path!r}" if path else "") + (f" ({line})" if line else "")


def failing_module(model: nn.Module, error: BaseException) -> str:
    """Path of the innermost module in the traceback, '' if there is none."""
    paths = {id(module): path for path, module in model.named_modules()}
    for step in _chain(error):
        found = ""
        while step is not None:
            found = paths.get(id(step.tb_frame.f_locals.get("self")), "") or found
            step = step.tb_next
        if found:
            return found
    return ""


def failing_line(error: BaseException) -> str:
    """Innermost line of a forward pass outside of torch, '' if there is none."""
    for step in _chain(error):
        found = ""
        below = False
        while step is not None:
            code = step.tb_frame.f_code
            below = below or isinstance(step.tb_frame.f_locals.get("self"), nn.Module)
            if below and not any(Path(code.co_filename).is_relative_to(library) for library in _LIBRARIES):
                text = linecache.getline(code.co_filename, step.tb_lineno).strip()
                found = f"{Path(code.co_filename).name}:{step.tb_lineno}: {text}"
            step = step.tb_next
        if found:
            return found
    return ""


def _chain(error: BaseException | None) -> Iterator[TracebackType | None]:
    """Tracebacks of an error and of what caused it."""
    while error is not None:
        yield error.__traceback__
        error = error.__cause__ or error.__context__


def forget(error: BaseException) -> None:
    """Drop what the frames of an error hold: whole models, which would stay until the next garbage collection."""
    current: BaseException | None = error
    while current is not None:
        traceback.clear_frames(current.__traceback__)
        # f_locals of a running frame is a copy, which holds the error and is held by its traceback.
        current.__traceback__ = None
        current = current.__cause__ or current.__context__


def short(error: BaseException, limit: int = 200) -> str:
    """First line of an error, with its type."""
    lines = str(error).strip().splitlines() or [""]
    text = f"{type(error).__name__}: {lines[0]}"
    text = text if len(text) <= limit else text[: limit - 3] + "..."
    return text if text.endswith((".", "!", "?")) else text + "."


@contextlib.contextmanager
def quiet_export() -> Iterator[None]:
    """Without what torch.export prints and logs of its own when it fails; the error itself says it all.

    Only warnings of this thread are dropped; debug output that the user asked of torch stays.
    """
    here = threading.get_ident()

    def stays(record: logging.LogRecord) -> bool:
        return record.levelno < logging.WARNING or record.thread != here

    names = vars(importlib.import_module("torch.export._trace"))
    before = names.get("print", print)

    def printed(*words: object, **options: object) -> None:
        # torch prints the graph that it had so far to stderr, past every logger.
        if threading.get_ident() != here:
            before(*words, **options)

    loggers = [logging.getLogger(name) for name in _NOISY]
    for logger in loggers:
        logger.addFilter(stays)
    names["print"] = printed
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(stays)
        if before is print:
            del names["print"]
        else:
            names["print"] = before
