"""The page of `training_methods.py`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from statistics import mean
from typing import Any

Row = dict[str, Any]
KEYS = ("kind", "study", "arm", "start", "seed")
_TITLES = {
    "cut": ("Cut or factorised to half of the dense FLOPs", "flops_fraction", "dense FLOPs"),
    "zero": ("90 % of the single weights zero: dense FLOPs as they were", "sparse_flops_fraction", "sparse FLOPs"),
    "dynamic": ("Layers whose FLOPs depend on the input", "dynamic_flops_fraction", "dynamic FLOPs"),
}
_STARTS = {"base": "the base model's weights", "fresh": "new weights"}
_REFERENCE = "magnitude"
# what the method notes; radii by drawn labels are noise and not shown
_FLATNESS = re.compile(r"of the Hessian (\S+) behind .*radii \(exact labels\) \S+ before it and (\S+) behind")


def markdown(rows: Sequence[Row]) -> str:
    """Return the whole page."""
    parts = [_INTRODUCTION]
    for base in (row for row in rows if row["kind"] == "base"):
        parts += [f"## {base['study']}", _about(base)]
        for kind, (title, _, _) in _TITLES.items():
            for start, weights in _STARTS.items():
                own = [r for r in rows if (r["study"], r["kind"], r.get("start")) == (base["study"], kind, start)]
                if own:
                    parts += [f"### {title}, from {weights}", _table(own, kind, base)]
        if flatness := _flatness([r for r in rows if r["study"] == base["study"]]):
            parts += ["### Flatness at the end of `spectral_radius`", _FLAT, flatness]
    return "\n\n".join(parts) + "\n"


def _about(base: Row) -> str:
    error = 100 * math.sqrt(0.25 / base["test_images"])
    return (
        f"Base model {base['accuracy']:.2%} on {base['test_images']} test images (one standard error of an accuracy: "
        f"{error:.1f} points or less), {base['train_images']} training images. Every arm: {base['epochs']:g} epochs in "
        f"all, SGD at a rate of {base['lr']:g} along a cosine, batch {base['batch_size']}. One thread of "
        f"{base['processor']}, torch {base['torch']}."
    )


def _table(rows: Sequence[Row], kind: str, base: Row) -> str:
    _, metric, cost = _TITLES[kind]
    names = [
        "method",
        "n",
        cost,
        "before finetuning",
        "at the end",
        f"over {_REFERENCE}",
        "in method",
        "epochs",
        "CPU s",
    ]
    lines = ["| " + " | ".join(names) + " |", "|---" + "|---:" * (len(names) - 1) + "|"]
    arms: dict[str, list[Row]] = {}
    for row in rows:
        arms.setdefault(row["arm"], []).append(row)
    for arm, own in sorted(arms.items(), key=lambda item: -mean(r["after"] for r in item[1])):
        cells = [
            f"`{arm}`",
            str(len(own)),
            f"{100 * mean(r[metric] for r in own):.1f} %",
            _accuracy([r["before"] for r in own]),
            _accuracy([r["after"] for r in own]),
            _over(own, arms.get(_REFERENCE, [])),
            f"{mean(r['in_method'] for r in own):.0%}",
            f"{mean(r['trained_samples'] for r in own) / base['train_images']:.1f}",
            f"{mean(r['seconds'] for r in own):.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _flatness(rows: Sequence[Row]) -> str:
    """Return the table of how flat the minima are that arms of spectral_radius end in, empty without any."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        for match in filter(None, map(_FLATNESS.search, row.get("notes", ()))):
            hessian, radii = map(float, match.groups())
            found.setdefault((row["start"], row["arm"]), []).append((hessian, radii))
    if not found:
        return ""
    lines = ["| from | arm | n | Hessian's largest eigenvalue | sum of spectral radii |", "|---|---|---:|---:|---:|"]
    for (start, arm), own in sorted(found.items()):
        hessian, radii = (_spread(list(values)) for values in zip(*own, strict=True))
        lines.append(f"| {_STARTS[start]} | `{arm}` | {len(own)} | {hessian} | {radii} |")
    return "\n".join(lines)


def _over(own: Sequence[Row], reference: Sequence[Row]) -> str:
    """Return the mean difference to plain magnitude on the same seeds, with its standard error."""
    plain = {row["seed"]: row["after"] for row in reference}
    found = [100 * (row["after"] - plain[row["seed"]]) for row in own if row["seed"] in plain]
    if not found or own[0]["arm"] == _REFERENCE:
        return "-"
    if len(found) == 1:
        return f"{found[0]:+.1f}"
    middle = mean(found)
    error = math.sqrt(sum((v - middle) ** 2 for v in found) / (len(found) - 1) / len(found))
    return f"{middle:+.1f} ± {error:.1f}"


def _accuracy(values: Sequence[float]) -> str:
    return _spread([100 * value for value in values])


def _spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation, of one value itself."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    middle = mean(values)
    spread = math.sqrt(sum((v - middle) ** 2 for v in values) / (len(values) - 1))
    return f"{middle:.1f} ± {spread:.1f}"


_INTRODUCTION = """\
# Training-time methods compared

Written by `python benchmarks/training_methods.py --markdown docs/training_methods.md` from
`benchmarks/training_methods.jsonl`.

Every arm trains on the same number of samples in all; what its method does not use goes into finetuning at the end.
*before finetuning*: test accuracy in per cent when the method is done and batch norms are estimated anew; *at the end*:
when the budget is spent; *over magnitude*: mean difference to plain magnitude (chosen at once, then finetuned) with the
same seed, ± its standard error; *in method*: share of the budget that the method itself used; *CPU s*: processor time
of one trial, measurements included. ± behind an accuracy is the standard deviation over seeds. Small budgets: papers
train for tens of times as long. Dense, sparse and dynamic FLOPs are three different things and stand in tables of their
own; dynamic FLOPs are measured, overhead included. No arm gets faster in stock PyTorch by sparse or dynamic FLOPs.

Differences of the size of an accuracy's standard error mean nothing. On digits that is nearly all of them: the small
network is at its ceiling, and the tables show that budgets and targets are kept, not which method is best. On ResNet-20
every arm has half an epoch and one seed, from the base model's weights only (after half an epoch from new weights there
is nothing to compare); there a method that spends the budget on its own training, or moves the weights far, is behind
one cut at once and finetuned, which says more about the budget than about the method."""

_FLAT = """\
Before the cut and the finetuning, on 512 training images. mu is `mu_rel`, 10 by default; mu = alpha = 0 is the same
schedule without penalty and without flatness in the criterion.

The paper claims flatter minima and better generalisation. From new weights, as in the paper, the minima are flatter:
the default leaves 40 % of the Hessian's largest eigenvalue and 63 % of the radii, lower in each of three seeds. It
costs accuracy, two points before finetuning and more than one behind it, which is more than seeds differ by. From the
base model's weights the radii end higher than without penalty: there the claim does not hold."""
