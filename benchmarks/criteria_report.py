"""The page of `criteria.py`: its tables, and what they show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean
from typing import Any

from autoprune import rooms

Row = dict[str, Any]


def markdown(rows: Sequence[Row]) -> str:
    """Return the whole page."""
    parts = [_INTRODUCTION]
    for base in (row for row in rows if row["kind"] == "base"):
        own = [row for row in rows if row["study"] == base["study"]]
        parts += [f"## {base['study']}", _about(base), _table(own)]
    found = [row for row in rows if row["kind"] == "parts"]
    if found:
        parts += ["## What it shows", _FINDINGS, *(_parts(row) for row in found)]
    return "\n\n".join(parts) + "\n"


def _about(base: Row) -> str:
    return (
        f"Base model {base['accuracy']:.2%} on {base['test_images']} test images (one standard error of the "
        f"accuracies below: {_error(base):.1f} points or less), {base['train_images']} training images, "
        f"{base['units']} units. One thread of {base['processor']}, torch {base['torch']}. `oracle`: "
        f"{base['oracle_seconds']:.0f} s of processor time on {base['oracle_images']} images."
    )


def _error(base: Row) -> float:
    return 100 * math.sqrt(0.25 / base["test_images"])


def _table(rows: Sequence[Row]) -> str:
    trials = [row for row in rows if row["kind"] == "trial"]
    targets = sorted({row["target"] for row in trials}, reverse=True)
    heads = [f"{kind} {target:g}" for target in targets for kind in ("calibrated", "finetuned")]
    names = ["criterion", *heads, "scoring, s", "rank within groups", "rank, all units"]
    lines = ["| " + " | ".join(names) + " |", "|---" + "|---:" * (len(names) - 1) + "|"]
    scores = [row for row in rows if row["kind"] == "scores"]

    def quality(row: Row) -> float:
        return -mean(t["finetuned"] for t in trials if t["criterion"] == row["criterion"])

    done = {row["criterion"] for row in rows if row["kind"] == "complete"}
    for row in sorted((s for s in scores if s["criterion"] in done), key=quality):
        own = [t for t in trials if t["criterion"] == row["criterion"]]
        cells = [
            _accuracy([t[k] for t in own if t["target"] == x]) for x in targets for k in ("calibrated", "finetuned")
        ]
        cost = "-" if row["criterion"] == "oracle" else f"{row['seconds']:.1f}"
        cells += [cost, _number(row["within_groups"]), _number(row["all_units"])]
        lines.append(f"| `{row['criterion']}` | " + " | ".join(cells) + " |")
    missing = [f"`{name}`" for name in rooms.names("criteria") if name not in done]
    if missing:
        lines += ["", f"Not measured yet: {', '.join(missing)}."]
    return "\n".join(lines)


def _accuracy(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{100 * values[0]:.1f}"
    middle = mean(values)
    spread = math.sqrt(sum((v - middle) ** 2 for v in values) / (len(values) - 1))
    return f"{100 * middle:.1f} ± {100 * spread:.1f}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _parts(row: Row) -> str:
    return (
        f"{row['study']}: the first-order term of `sosp_h` alone ranks with {row['sosp_h_first']:.2f} inside groups, "
        f"its second-order term with {row['sosp_h_second']:.2f}; that term is {row['sosp_h_share_of_second']:.0%} of "
        f"the scores. `epruner` ranks with {row['epruner_with_norm']:.2f} by the L2 norms of the filters, which rank "
        f"with {row['norm_with_truth']:.2f} by the true losses."
    )


_FINDINGS = """\
A score that knows what removing one unit costs does not know what removing half of them costs: `oracle` is not the
best line of a table, and the criteria that look at what the next layer can replace (`thinet`, `compensation_rank`,
`hierarchical_gradient`) hold up at small targets.

`sosp_h` is no score of single units. Its second-order term is the Hessian times the weights of *all* units, as its
paper has it: the change when everything goes at once. Units whose removals would cancel score low, however much each
is worth, and the expansion is taken far outside the region where it holds. The term outweighs the first-order one and
ranks worse. The formula is the paper's (the tests hold it to the dense Hessian); `sosp_i` and
`taylor_2019_per_example` are made for single units and rank far better.

`epruner` keeps filters that others resemble. The preference of a filter is beta times the median of its similarities,
so that filters near the centre of the layer, those of small norm among them, become exemplars first, while filters of
large norm, which matter most, stand for nobody but themselves. Its scores fall with the filters' norm. The selection
agrees with affinity propagation at the same beta, so this is the published method; its paper finetunes for 150
epochs."""

_INTRODUCTION = """\
# Criteria compared

Written by `python benchmarks/criteria.py --markdown docs/criteria.md` from `benchmarks/criteria.jsonl`.

Every criterion cuts the same share of every group, down to 0.7, 0.5 and 0.3 of the FLOPs, one shot. *calibrated*: test
accuracy in per cent after batch norms are estimated anew, nothing else; *finetuned*: after 0.2 epochs more (SGD, rate
0.02 along a cosine, batch 128). *scoring*: processor time of gathering evidence and scoring all units. *rank*:
Spearman's coefficient between the scores and what removing each unit alone adds to the training loss, with batch norms
as they are: the mean over groups, and over all units of the network at once. `oracle` cuts by that loss itself. ± is
the standard deviation over three seeds, where scores are random; otherwise one seed. By falling accuracy after
finetuning."""
