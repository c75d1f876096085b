"""What all commands share: options, errors, output."""

from __future__ import annotations

import functools
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer

from autoprune.errors import AutopruneError, BadInput

if TYPE_CHECKING:
    from rich.console import Console

P = ParamSpec("P")

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130

JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON, and nothing else, to standard output.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a value of the study, e.g. data.root=/data. Repeatable."),
]

_debug = False


def show_tracebacks(wanted: bool) -> None:
    """Choose whether errors come with their traceback."""
    global _debug
    _debug = wanted


def reporting(command: Callable[P, None]) -> Callable[P, None]:
    """Return a command whose errors end in one message on standard error and the right exit status."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt:
            fail("interrupted", INTERRUPTED)
        except BrokenPipeError:
            # whoever read our output has seen enough; the interpreter must not complain when it flushes
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(FAILED) from None
        except AutopruneError as error:
            fail(str(error), error.exit_status)
        except Exception as error:
            text = str(error).strip() or "no message"
            fail(f"unexpected {type(error).__name__}: {text} (autoprune --debug ... shows where)", FAILED)

    return run


def fail(message: str, status: int) -> None:
    """Print an error and leave with the status. Raises typer.Exit."""
    if _debug and sys.exc_info()[0] is not None:
        traceback.print_exc()
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(status)


def console(*, stderr: bool = False) -> Console:
    """Return a console; no colours and no cut-off columns when the output is no terminal."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else 160
    return Console(stderr=stderr, width=width, highlight=False, soft_wrap=False)


def print_json(value: Any) -> None:
    """Write JSON to standard output; numbers that are not finite become null."""
    typer.echo(json.dumps(_finite(value), indent=1, default=str))


def overrides_of(settings: list[str] | None, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return what flags and `--set` ask for, dotted key to value; flags that were not given are left out.

    Raises BadInput.
    """
    from autoprune.study.config import parse_override

    given = {key: value for key, value in flags.items() if value is not None}
    for text in settings or []:
        key, value = parse_override(text)
        if key in given:
            raise BadInput(f"{key} is given twice, by a flag and by --set; leave one out")
        given[key] = value
    return given


def fractions_of(text: str | None, flag: str) -> list[float] | None:
    """Return the numbers of a comma-separated flag, each in (0, 1]. Raises BadInput."""
    from autoprune.report.selection import check_fraction

    if text is None:
        return None
    found = []
    for part in text.split(","):
        try:
            found.append(float(part))
        except ValueError:
            raise BadInput(f"{flag} takes fractions like 0.5,0.35, got {text!r}") from None
        check_fraction(flag, found[-1])
    return found


def check_new(folder: Path) -> None:
    """Raises BadInput for a folder that exists and is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder} exists and is not empty; choose another folder, or remove it first")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
