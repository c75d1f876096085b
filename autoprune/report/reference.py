"""The methods reference, written from the declarations: `python -m autoprune.report.reference docs/methods.md`."""

from __future__ import annotations

import inspect
import json
import sys
from itertools import groupby
from pathlib import Path

import yaml

from autoprune import rooms
from autoprune.files import write_text
from autoprune.report.catalogue import PRESETS, Entry, entries

_ROOM_TITLES = {
    "criteria": "Criteria: which units are worth keeping",
    "allocation": "Allocation: how much from each group",
    "schedules": "Schedules: when how much is cut",
    "regularisers": "Regularisers: weights shaped by training before the cut",
    "lowrank": "Low rank: layers as products of thinner ones",
    "depth": "Depth: which residual blocks are skipped",
    "sparsity": "Sparsity: which single weights become zero",
    "replacement": "Replacement: units that stay in a cheaper form",
    "recovery": "Recovery: winning accuracy back",
    "quantisation": "Quantisation: integers in the deployed file",
    PRESETS: "Presets: published methods as a choice of parts",
}


def methods_markdown() -> str:
    """Return the reference of all methods and presets as Markdown."""
    parts = [
        "# Methods\n\nWritten from the code by `python -m autoprune.report.reference docs/methods.md`. `search` in a "
        "search space stands for the range in the column *searched*."
    ]
    for room, found in groupby(entries(), key=lambda entry: entry.room):
        parts += [f"## {_ROOM_TITLES[room]}", *(_section(entry) for entry in found)]
    return "\n\n".join(parts) + "\n"


def _section(entry: Entry) -> str:
    blocks = [f"### `{entry.name}`", entry.summary]
    if entry.recipe is not None:
        blocks += [entry.paper, f"```yaml\n{yaml.safe_dump(dict(entry.recipe), sort_keys=False).rstrip()}\n```"]
    else:
        if entry.effort is not None:
            blocks.append(f"Gathering its evidence takes {entry.effort} forward passes of the model per sample.")
        blocks.append(f"```text\n{_module_text(entry)}\n```")
    if entry.hyperparameters:
        blocks.append(_table(entry))
    return "\n\n".join(block for block in blocks if block)


def _module_text(entry: Entry) -> str:
    module = inspect.getmodule(rooms.method_class(entry.room, entry.name))
    return (inspect.getdoc(module) or "").strip()


def _table(entry: Entry) -> str:
    rows = ["| hyperparameter | default | valid | searched | |", "|---|---|---|---|---|"]
    rows += [
        f"| `{h.name}` | {json.dumps(h.default)} | {h.valid} | {h.search} | {h.help} |" for h in entry.hyperparameters
    ]
    return "\n".join(rows)


if __name__ == "__main__":
    write_text(Path(sys.argv[1]), methods_markdown())
