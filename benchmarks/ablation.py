"""What each part of a recipe adds, before any training and after a short one, on a study's own base model and data.

    AUTOPRUNE_CIFAR10_JPEG=... AUTOPRUNE_RESNET20_WEIGHTS=... python benchmarks/ablation.py cifar10_jpeg_resnet20
    python benchmarks/ablation.py digits --epochs 0
    python benchmarks/ablation.py --markdown

Every line of the table changes one thing of the one before it, or of the one that it names. No search takes place:
these are single recipes, each brought to the same FLOPs. `samples` counts what a recipe's scores, measurements and
closed-form corrections cost: a trained sample is one, a forward sample a third. Rows are appended to a file of JSON
lines, and what is there already is not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from criteria import bench_of

from autoprune import machine, threads
from autoprune.files import append_line, read_lines
from autoprune.recipe import Recipe
from autoprune.search.baselines import named
from autoprune.seeds import derive_seed
from autoprune.tasks import evaluate
from autoprune.trial import Bench, prepare, train_on

TARGETS = (0.5, 0.3)
_SETTLE: list[Any] = [{"name": "bn_reestimation", "samples": 2048}]
_CORRECT: list[Any] = ["compensation", *_SETTLE]
_FINETUNE, _DISTIL = {"name": "finetune", "lr": 0.02}, {"name": "distillation", "lr": 0.02}
_ENERGY = {"name": "svd", "ranks": "energy", "rank_fraction": 0.8}
_FITTED = _ENERGY | {"reconstruct": "outputs"}
_CHANNELS = {"name": "per_group", "keep_fraction": 0.8}

PARTS: Mapping[str, Mapping[str, Any]] = {
    "uniform widths by L1 norm, finetuned": {"criterion": "l1_norm", "recovery": [*_SETTLE, _FINETUNE]},
    "distilled instead of finetuned": {"criterion": "l1_norm", "recovery": [*_SETTLE, _DISTIL]},
    "and the layers behind the cut corrected": {"criterion": "l1_norm", "recovery": [*_CORRECT, _DISTIL]},
    "scored by what that correction cannot replace": {
        "criterion": "compensation_rank",
        "recovery": [*_CORRECT, _DISTIL],
    },
    "widths by a knapsack over measured losses": {
        "criterion": "compensation_rank",
        "allocation": {"name": "knapsack", "rounds": 6},
        "recovery": [*_CORRECT, _DISTIL],
    },
    "measured once, on 128 samples (the warm start `knapsack`)": named("knapsack").plain(),
    "ranks instead of channels (SVD of the weights, the same share of every layer)": {
        "criterion": None,
        "low_rank": {"name": "svd"},
        "recovery": [*_SETTLE, _DISTIL],
    },
    "ranks by energy": {"criterion": None, "low_rank": _ENERGY, "recovery": [*_SETTLE, _DISTIL]},
    "and fitted to the layers' outputs": {"criterion": None, "low_rank": _FITTED, "recovery": [*_SETTLE, _DISTIL]},
    "ranks and channels together": {
        "criterion": "compensation_rank",
        "normalisation": "none",
        "allocation": _CHANNELS,
        "low_rank": _FITTED,
        "recovery": [*_CORRECT, _DISTIL],
    },
}


def run(study: str, epochs: float, targets: Sequence[float], out: Path) -> None:
    """Measure what is not in the file yet."""
    bench, about = bench_of(study), machine.describe()
    done = {_key(row) for row in (read_lines(out) if out.exists() else [])}
    for target in targets:
        for name, parts in PARTS.items():
            row = {"study": study, "part": name, "target": target, "epochs": epochs}
            if _key(row) in done:
                continue
            row |= measured(Recipe.parse({**parts, "target": {"flops_fraction": target}}), epochs, bench) | about
            append_line(out, row)
            print(json.dumps(row), flush=True)


def measured(recipe: Recipe, epochs: float, bench: Bench) -> dict[str, Any]:
    """Return accuracies in 0..1 and costs of one recipe with seed 0."""
    began = time.process_time()
    prepared = prepare(recipe, bench, 0)
    seconds, model = time.process_time() - began, prepared.compressed.model
    found = {
        "flops_fraction": prepared.amounts.flops_fraction,
        "samples": prepared.cost.trained_samples + prepared.cost.forward_samples / 3,
        "cpu_seconds": seconds,
        "before": _accuracies(model, bench),
    }
    if epochs > 0:
        train_on(model, recipe, bench, derive_seed(0, "train"), epochs)
        found["after"] = _accuracies(model, bench)
    return found


def _accuracies(model: Any, bench: Bench) -> dict[str, float]:
    splits = {"validation": bench.data.validation, "test": bench.data.test}
    size = bench.settings.eval_batch_size
    return {name: evaluate(model, split, bench.task, size).accuracy for name, split in splits.items() if split}


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table for every study and target, in the order of `PARTS`."""
    lines: list[str] = []
    for study, target in sorted({(row["study"], row["target"]) for row in rows}, key=lambda key: (key[0], -key[1])):
        mine = [row for row in rows if (row["study"], row["target"]) == (study, target)]
        lines += [f"`{study}`, {100 * target:g} % of the FLOPs:", ""]
        lines += ["| recipe | validation, not trained | test, not trained | test, trained | samples before training |"]
        lines += ["|---|---:|---:|---:|---:|"]
        for name in PARTS:
            found: dict[str, Any] = {}
            for row in mine:
                found |= row if row["part"] == name else {}
            if found:
                after = f"{100 * found['after']['test']:.1f} ({found['epochs']:g} epochs)" if "after" in found else "-"
                before = " | ".join(f"{100 * found['before'][split]:.1f}" for split in ("validation", "test"))
                lines.append(f"| {name} | {before} | {after} | {found['samples']:,.0f} |")
        lines.append("")
    return "\n".join(lines)


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("study", "part", "target", "epochs"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", nargs="?", help="name or file of a study")
    parser.add_argument("--epochs", type=float, default=0.0, help="of training after the cut")
    parser.add_argument("--targets", type=float, nargs="+", default=TARGETS, help="shares of the FLOPs")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("ablation.jsonl"))
    parser.add_argument("--markdown", action="store_true", help="print the tables of the file")
    options = parser.parse_args()
    if options.study:
        with threads.limited(1):
            run(options.study, options.epochs, options.targets, options.out)
    if options.markdown:
        print(markdown(read_lines(options.out)))


if __name__ == "__main__":
    main()
