"""Every error that autoprune raises on purpose.

AutopruneError
├── BadInput                    what the user wrote cannot work; the command line exits with status 2
│   ├── BadRecipe               a recipe, search space or study file breaks its schema
│   ├── UnknownName             no method, model, data set, group or run of that name
│   ├── UnreachableTarget       no choice of kept units meets the target
│   ├── TraceFailed             the model cannot be traced
│   ├── BadData                 the data does not fit the model or cannot be read
│   └── WrongArtefact           a folder is not an artefact, or does not fit the model it is loaded into
├── MissingDependency           an optional package is needed; the message names the extra; exit status 2
└── Failure                     the work itself went wrong; the command line exits with status 1
    ├── TrialFailed             one trial could not finish (NaN loss, out of memory, killed worker)
    │   ├── LossNotFinite
    │   └── OutOfMemory
    ├── NotApplicable           a method cannot work on a group or layer of this model
    └── CheckFailed             a self-check of a finished model disagrees (artefact, export)

Messages say what, where, what is allowed and the likely fix, in that order.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AutopruneError(Exception):
    """Base of all errors raised on purpose."""

    exit_status = 1


class BadInput(AutopruneError):
    """What the user wrote cannot work."""

    exit_status = 2


class BadRecipe(BadInput):
    """A recipe, search space or study file breaks its schema."""


class NothingToDo(BadRecipe):
    """A recipe names nothing that makes a model smaller or cheaper. A draw of a search space may come to that."""


class UnknownName(BadInput):
    """Nothing of that name exists. Build it with `unknown_name`, which suggests the nearest name."""


class UnreachableTarget(BadInput):
    """No choice of kept units and ranks meets the target."""


class TraceFailed(BadInput):
    """The model cannot be traced; the message names the module and the cause."""


class BadData(BadInput):
    """The data does not fit the model, or cannot be read."""


class WrongArtefact(BadInput):
    """The folder is no artefact, or its tensors do not fit the base model."""


class MissingDependency(AutopruneError):
    """An optional package is not installed."""

    exit_status = 2


class Failure(AutopruneError):
    """The work itself went wrong."""


class TrialFailed(Failure):
    """One trial could not finish; the study goes on."""


class LossNotFinite(TrialFailed):
    """The training loss became NaN or infinite."""


class OutOfMemory(TrialFailed):
    """The trial did not fit into memory."""


class NotApplicable(Failure):
    """A method cannot work on this group or layer; the caller leaves it whole and reports the reason."""


class CheckFailed(Failure):
    """A finished model disagrees with what was recorded of it."""


def unknown_name(kind: str, name: str, candidates: Iterable[str]) -> UnknownName:
    """Build the error for a name that does not exist, with the nearest one or the whole list."""
    names = sorted(candidates)
    near = difflib.get_close_matches(name, names, n=1)
    known = f"Known: {', '.join(names)}." if names else "None are known."
    hint = f"Did you mean {near[0]!r}?" if near else known
    return UnknownName(f"no {kind} named {name!r}. {hint}")
