"""What models cut from one model lose: measured once for each cut, remembered, for the base model also on disk.

The file is one JSON line per measurement, so that several workers may write at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autoprune.files import append_line, read_lines
from autoprune.tasks import Evaluation

Kept = Mapping[str, Sequence[int]]


class CutLosses:
    """Loss and accuracy by what was kept, how it was corrected, and the samples measured on."""

    def __init__(self, file: Path | None, *, stamp: Callable[[], str]) -> None:
        """stamp: says what the model and the data are; measurements under another one are not found."""
        self._file, self._stamp = file, stamp
        self._known: dict[str, Evaluation] = {}

    def refresh(self) -> None:
        """Take up what other workers have measured."""
        for line in [] if self._file is None else read_lines(self._file):
            self._known[line["key"]] = Evaluation(line["loss"], line["accuracy"], line["count"])

    def get(self, kept: Kept, corrections: Sequence[Mapping[str, Any]], samples: int) -> Evaluation | None:
        """Return what was measured before, or None."""
        return self._known.get(self._key(kept, corrections, samples))

    def measured(
        self,
        kept: Kept,
        corrections: Sequence[Mapping[str, Any]],
        samples: int,
        measure: Callable[[], Evaluation],
    ) -> Evaluation:
        """Measure now, remember, and return."""
        key, found = self._key(kept, corrections, samples), measure()
        self._known[key] = found
        if self._file is not None:
            line = {"key": key, "loss": found.loss, "accuracy": found.accuracy, "count": found.count}
            append_line(self._file, line)
        return found

    def _key(self, kept: Kept, corrections: Sequence[Mapping[str, Any]], samples: int) -> str:
        cut = {name: list(units) for name, units in kept.items()}
        what = json.dumps([self._stamp(), cut, list(corrections), samples], sort_keys=True)
        return hashlib.sha256(what.encode()).hexdigest()[:32]
