"""docs/coverage.md from what `coverage.py` measured: every number and every word about models comes from the rows.

python benchmarks/coverage_report.py coverage.jsonl [--torch-pruning torch_pruning.jsonl] > docs/coverage.md
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

INTRODUCTION = """# Coverage

Which published models can be cut, and how much of them. This page is generated:

    python benchmarks/coverage.py --out coverage.jsonl
    python benchmarks/coverage.py --out torch_pruning.jsonl --torch-pruning
    python benchmarks/coverage_report.py coverage.jsonl --torch-pruning torch_pruning.jsonl > docs/coverage.md

A run that was stopped goes on where it was; `--only 'timm/vit*'` picks models. Random weights, batch of one, small
images where a model allows, one thread.

exact: cut equals masked in float64 within 1e-9 relative, FLOPs and parameters as predicted, no gradient lost, training
shapes kept, state_dict round trip. prunable: share of the FLOPs that goes when every group keeps one unit. at half:
FLOPs left when every group keeps half of its units. Times are seconds (milliseconds) of processor time. tensors: the
most that lived in tensors at once while tracing and verifying, beyond one forward pass of the model as it is, in sizes
of the model. memory: the same of the whole process, as the system counts it. It also has the Python objects of the
graph, which are some megabytes for every model, and memory that was freed and that the C library keeps for itself.
Comparing in float64 takes the model twice, and the activations of a forward pass twice. Tensors are counted where the
process held more than three sizes.
"""
BESIDE = """## Side by side with Torch-Pruning

As it comes, half width everywhere, the same models and images. passes: the cut model runs, costs less and its output
has its shape. exact: outputs as those of the full model with the removed channels at zero, in float64 within 1e-6; a
width that a layer normalisation sees cannot be exact in this sense, because its statistics change. A cut with
Torch-Pruning includes building its graph, which has to be done for each cut. It had 60 s of processor time for a model.
"""
COLUMNS = (
    ("exact", "exact"), ("prunable", "prunable"), ("half_flops", "at half"), ("groups", "groups"),
    ("trace_cpu_s", "trace s"), ("verify_cpu_s", "verify s"), ("tensors", "tensors"), ("memory", "memory"),
    ("copy_ms", "copy ms"), ("cut_ms", "cut ms"),
)  # fmt: skip


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    from coverage import read
    from coverage_models import names

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=Path)
    parser.add_argument("--torch-pruning", type=Path)
    options = parser.parse_args()
    listed = names()
    rows = {row["model"]: row for row in read(options.rows) if row["model"] in listed}
    theirs = {row["model"]: row for row in read(options.torch_pruning)} if options.torch_pruning else {}
    print("\n".join(page(listed, rows, theirs)))


def page(listed: Sequence[str], rows: dict[str, Row], theirs: dict[str, Row]) -> Iterable[str]:
    """Lines of the whole page."""
    yield INTRODUCTION
    yield from _summary(listed, rows)
    yield from _times(list(rows.values()))
    if theirs:
        yield BESIDE
        yield from _beside(listed, rows, theirs)
    yield from _below(rows)
    yield from _failed(listed, rows)
    yield "## All models\n"
    yield from _table(
        ("model", *(title for _, title in COLUMNS), *(["Torch-Pruning"] if theirs else [])),
        [_all(row, theirs) for _, row in sorted(rows.items()) if "error" not in row],
    )


def _summary(listed: Sequence[str], rows: dict[str, Row]) -> Iterable[str]:
    cells = []
    for source in ("torchvision", "timm"):
        every = [name for name in listed if name.startswith(source + "/")]
        mine = [rows[name] for name in every if name in rows]
        good = [row for row in mine if row.get("exact")]
        half = [row for row in good if row["prunable"] >= 0.5]
        failed = [row for row in mine if "error" in row]
        share = f"{len(half)} ({len(half) / len(every):.0%} of the listed)"
        wrong = sum(bool(row.get("wrong")) for row in mine)
        cells.append((source, len(every), len(mine) - len(failed), len(good), wrong, share, len(failed)))
    heads = ("source", "listed", "finished", "exact", "wrong", "half or more of the FLOPs prunable", "failed")
    yield from _table((*heads, "not run"), [(*c, c[1] - c[2] - c[6]) for c in cells])


def _memory(done: Sequence[Row]) -> str:
    # older rows counted memory in another way
    known = [row for row in done if "model_mib" in row]
    over = [row for row in known if row["memory"] > 3]
    if not known:
        return ""
    told = f"The process is within three sizes of the model for {len(known) - len(over)} of {len(known)} models"
    counted = [row for row in over if "tensors" in row]
    if not counted:
        return f"{told}. "
    tensors = [row for row in counted if row["tensors"] > 3]
    worst = f" (not {', '.join(row['model'] for row in tensors)})" if tensors else ""
    largest = max(over, key=lambda row: row["model_mib"])
    return (
        f"{told}, tensors are for {len(counted) - len(tensors)} of the other {len(counted)}{worst}; the largest of "
        f"these models has {largest['model_mib']:.0f} MiB ({largest['model']}). "
    )


def _times(rows: Sequence[Row]) -> Iterable[str]:
    done = [row for row in rows if "error" not in row]
    if not done:
        return
    both = [row["trace_cpu_s"] + row["verify_cpu_s"] for row in done]
    cuts = [row["cut_ms"] / row["copy_ms"] for row in done]
    slow = [row["model"] for row, seconds in zip(done, both, strict=True) if seconds >= 20]
    versions = sorted({", ".join(f"{k} {v}" for k, v in row["versions"].items()) for row in done})
    commits = Counter(row["commit"] for row in rows)
    yield (
        f"Trace and verify together: {statistics.median(both):.1f} s at the median, {max(both):.1f} s at most; "
        f"20 s or more: {', '.join(slow) or 'none'}. A cut takes {statistics.median(cuts):.2f} deepcopies at the "
        f"median, {max(cuts):.2f} at most. {_memory(done)}Measured with "
        f"{'; '.join(versions)}, n = 1 (copy and cut: median of 5), at "
        f"commit {', '.join(f'{commit} ({count} rows)' for commit, count in commits.most_common())}.\n"
    )


def _beside(listed: Sequence[str], rows: dict[str, Row], theirs: dict[str, Row]) -> Iterable[str]:
    cells = []
    for source in ("torchvision", "timm"):
        every = [name for name in listed if name.startswith(source + "/")]
        ours = [rows[name] for name in every if name in rows]
        their = [theirs[name] for name in every if name in theirs]
        passes = sum("error" not in row for row in ours)
        exact = sum(bool(row.get("exact")) for row in ours)
        cells.append((source, "autoprune", len(ours), passes, exact, len(ours) - exact, 0, _cut(ours)))
        told = [row.get("exact") for row in their if row.get("passes")]
        unknown = sum(value is None for value in told)
        exact = sum(value is True for value in told)
        wrong = len(their) - exact - unknown
        cells.append((source, "Torch-Pruning", len(their), len(told), exact, wrong, unknown, _cut(their)))
    heads = ("source", "with", "run", "passes", "exact", "fails or differs", "passes, not checked")
    yield from _table((*heads, "cut, in deepcopies (median)"), cells)
    reasons = Counter(_reason(row) for name, row in theirs.items() if name in listed and "error" in row)
    yield "What fails with Torch-Pruning:\n"
    yield from _table(("models", "error"), [(count, reason) for reason, count in reasons.most_common(8)])


def _reason(row: Row) -> str:
    """The error without the numbers of this model."""
    return "".join("#" if c.isdigit() else c for c in row["error"].split("\n")[0][:90]).replace("|", "/")


def _cut(rows: Sequence[Row]) -> str:
    found = [row["cut_ms"] / row["copy_ms"] for row in rows if "cut_ms" in row]
    return f"{statistics.median(found):.1f}" if found else ""


def _below(rows: dict[str, Row]) -> Iterable[str]:
    cells = []
    for name, row in sorted(rows.items()):
        if "error" in row or row["prunable"] >= 0.5:
            continue
        reasons = [(why, n) for why, n in row["frozen"].items() if not why.startswith("output")][:3]
        cells.append((name, row["prunable"], "; ".join(f"{why} ({n})" for why, n in reasons)))
    yield "## Less than half prunable\n"
    yield "What stays whole, as the structure reports it, with the number of channels.\n"
    yield from _table(("model", "prunable", "frozen"), cells)


def _failed(listed: Sequence[str], rows: dict[str, Row]) -> Iterable[str]:
    cells = [(name, row["error"][:150].replace("|", "/")) for name, row in sorted(rows.items()) if "error" in row]
    cells += [(name, "; ".join(row["wrong"])[:150]) for name, row in sorted(rows.items()) if row.get("wrong")]
    missing = [name for name in listed if name not in rows]
    if cells:
        yield "## Failed or wrong\n"
        yield from _table(("model", "reason"), cells)
    if missing:
        yield f"Not run: {', '.join(missing)}.\n"


def _all(row: Row, theirs: dict[str, Row]) -> tuple[Any, ...]:
    cells = tuple(row.get(key, "-") for key, _ in COLUMNS)
    return (row["model"], *cells, *([_verdict(theirs.get(row["model"]))] if theirs else []))


def _verdict(row: Row | None) -> str:
    if row is None:
        return "not run"
    if not row.get("passes"):
        return "fails"
    return {True: "exact", False: "differs", None: "passes, not checked"}[row.get("exact")]


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterable[str]:
    yield "| " + " | ".join(heads) + " |\n|" + "---|" * len(heads)
    for row in rows:
        yield "| " + " | ".join(str(cell) for cell in row) + " |"
    yield ""


if __name__ == "__main__":
    main()
