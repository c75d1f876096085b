"""Every criterion under one allocation and one budget: accuracy, cost of scoring, agreement with the true loss change.

    AUTOPRUNE_CIFAR10_JPEG=... AUTOPRUNE_RESNET20_WEIGHTS=... python benchmarks/criteria.py cifar10_jpeg_resnet20
    python benchmarks/criteria.py digits
    python benchmarks/criteria.py --markdown docs/criteria.md

The same share of every group goes, so that only the order of the units inside a group differs between criteria. After
the cut batch norms are estimated anew, then the model is finetuned for 0.2 epochs. Criteria whose scores depend on the
seed run with three seeds. `oracle` ranks by what removing each unit alone adds to the loss, measured one by one. Rows
are appended to a file of JSON lines, and what is there already is not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, cast

import torch
from criteria_report import Row, markdown
from scipy.stats import spearmanr
from torch import Tensor

from autoprune import machine, rooms, threads
from autoprune.base import make_base
from autoprune.criteria import Criterion
from autoprune.data import build_data
from autoprune.errors import NotApplicable
from autoprune.evidence import Evidence, ModelEvidence
from autoprune.files import append_line, read_lines, write_text
from autoprune.graph import Group
from autoprune.graph.surgery import masked
from autoprune.models import build_model, train_base
from autoprune.recipe import Recipe
from autoprune.seeds import derive_seed
from autoprune.study.config import StudyConfig, load
from autoprune.tasks import build_task, evaluate, forward
from autoprune.trial import Bench, prepare, train_on

TARGETS = (0.7, 0.5, 0.3)
EPOCHS = 0.2
SEEDS = (0, 1, 2)
TEST_IMAGES = 2000
ORACLE_IMAGES = 300
ORACLE = "oracle"


@dataclass(frozen=True, kw_only=True)
class Oracle(Criterion):
    """Scores measured beforehand, by group."""

    scores: Mapping[str, Tensor]

    @property
    def name(self) -> str:
        """What tables call it."""
        return ORACLE

    def score(self, group: Group, evidence: ModelEvidence) -> Tensor:
        return self.scores[group.name]


def bench_of(study: str) -> Bench:
    """Return a study's base model, trained when it has no weights, and its data."""
    return bench_of_config(load(study).config)


def bench_of_config(config: StudyConfig) -> Bench:
    """Return the same of a study that was read already."""
    data, task = build_data(config.data), build_task(config.task)
    model = build_model(config.model, data.num_classes, seed=derive_seed(config.seed, "model"))
    base = make_base(model, data.example_inputs, spec=config.model)
    if config.model.weights is None:
        train_base(base.model, data, task, config.train_base, seed=derive_seed(config.seed, "base"))
        base.model.eval()
    return Bench(base, data, task, config.trial)


def removal_losses(bench: Bench) -> dict[str, Tensor]:
    """Return by group (C,): the loss without one unit minus the loss with all, on the same training images."""
    inputs, targets = next(bench.data.train.batches(ORACLE_IMAGES, limit=ORACLE_IMAGES, device=bench.device))
    structure = bench.base.structure

    def loss() -> float:
        with torch.inference_mode():
            return float(bench.task.loss(forward(bench.model, inputs), targets))

    full = loss()
    found: dict[str, Tensor] = {}
    for group in structure.groups:
        values = []
        for unit in range(group.size):
            keep = {group.name: [i for i in range(group.size) if i != unit]}
            with masked(structure, bench.model, keep):
                values.append(loss() - full)
        found[group.name] = torch.tensor(values, dtype=torch.float64)
    return found


def scores_of(criterion: Criterion, bench: Bench, evidence: ModelEvidence) -> dict[str, Tensor]:
    """Return the scores of all groups that the criterion can score."""
    found = {}
    for group in bench.base.structure.groups:
        try:
            found[group.name] = criterion.score(group, evidence)
        except NotApplicable:
            continue
    return found


def rank_correlation(scores: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> dict[str, float]:
    """Return Spearman's coefficient with the truth: mean over groups, and over all units of the network together."""
    inside = [_spearman(score, truth[name]) for name, score in scores.items()]
    defined = [value for value in inside if math.isfinite(value)]
    together = _spearman(torch.cat(list(scores.values())), torch.cat([truth[name] for name in scores]))
    return {"within_groups": sum(defined) / len(defined) if defined else math.nan, "all_units": together}


def _spearman(first: Tensor, second: Tensor) -> float:
    if float(first.max()) == float(first.min()) or float(second.max()) == float(second.min()):
        return math.nan  # a constant has no order
    return float(spearmanr(first.cpu().numpy(), second.cpu().numpy()).statistic)


def measure_criterion(criterion: Criterion, study: str, bench: Bench, truth: Mapping[str, Tensor]) -> Iterator[Any]:
    """Yield a row about the scores, then one for every target and seed."""
    began = time.process_time()
    bench.evidence.prepare(frozenset(Evidence(kind) for kind in criterion.needs))
    scores = scores_of(criterion, bench, bench.evidence.with_seed(SEEDS[0]))
    seconds = time.process_time() - began
    others = scores_of(criterion, bench, bench.evidence.with_seed(SEEDS[1]))
    random = any(not torch.equal(scores[name], others[name]) for name in scores)
    common = {"study": study, "criterion": criterion.name}
    yield common | {"kind": "scores", "seconds": seconds, "random": random, **rank_correlation(scores, truth)}
    for target in TARGETS:
        for seed in SEEDS if random else SEEDS[:1]:
            yield common | {"kind": "trial", "target": target, "seed": seed} | trial(criterion, target, seed, bench)


def parts(study: str, bench: Bench, truth: Mapping[str, Tensor]) -> Row:
    """Return what two criteria are made of: ranks of the terms of sosp_h, and what epruner's scores go with."""
    groups = bench.base.structure.groups
    both = {g.name: bench.evidence.unit_curvature(g, norms=False) for g in groups}
    epruner = scores_of(cast(Criterion, rooms.build("criteria", "epruner")), bench, bench.evidence)
    norms = scores_of(cast(Criterion, rooms.build("criteria", "l2_norm")), bench, bench.evidence)
    return {
        "kind": "parts",
        "study": study,
        "criterion": "",
        "sosp_h_first": rank_correlation({k: first.abs() for k, (first, _) in both.items()}, truth)["within_groups"],
        "sosp_h_second": rank_correlation({k: second.abs() for k, (_, second) in both.items()}, truth)["within_groups"],
        "sosp_h_share_of_second": _share_of_second(both.values()),
        "epruner_with_norm": rank_correlation(epruner, norms)["within_groups"],
        "norm_with_truth": rank_correlation(norms, truth)["within_groups"],
    }


def _share_of_second(both: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return what part of all scores of sosp_h its second-order term is."""
    first, second = (torch.cat(values).abs().sum() for values in zip(*both, strict=True))
    return float(second / 2 / (first + second / 2))


def trial(criterion: Criterion, target: float, seed: int, bench: Bench) -> dict[str, float]:
    """Cut, calibrate and finetune; return test accuracies on the same images."""
    recipe = Recipe.parse(
        {
            "criterion": criterion,
            "normalisation": "none",
            "allocation": "uniform",
            "target": {"flops_fraction": target},
            "recovery": ["bn_reestimation", "finetune"],
        }
    )
    prepared = prepare(recipe, bench, seed)
    before = accuracy(prepared.compressed.model, bench)
    train_on(prepared.compressed.model, recipe, bench, derive_seed(seed, "train"), EPOCHS)
    return {
        "flops_fraction": prepared.amounts.flops_fraction,
        "calibrated": before,
        "finetuned": accuracy(prepared.compressed.model, bench),
    }


def accuracy(model: torch.nn.Module, bench: Bench) -> float:
    """Return the accuracy on the first 2,000 images of a fixed permutation of the test split, or on all of fewer."""
    if bench.data.test is None:
        raise SystemExit("the study's data have no test split")
    return evaluate(model, bench.data.test, bench.task, bench.settings.eval_batch_size, limit=TEST_IMAGES).accuracy


def run(study: str, only: str, out: Path) -> None:
    """Measure what is not in the file yet."""
    bench = bench_of(study)
    done = {(row["study"], row["criterion"]) for row in read_rows(out) if row["kind"] == "complete"}
    began = time.process_time()
    truth = removal_losses(bench)
    about = machine.describe() | {"torch": torch.__version__}
    base = {"test_images": min(TEST_IMAGES, len(bench.data.test or ())), "train_images": len(bench.data.train)}
    base |= {"units": sum(len(t) for t in truth.values()), "accuracy": accuracy(bench.model, bench)}
    base |= {"oracle_images": min(ORACLE_IMAGES, len(bench.data.train)), "oracle_seconds": time.process_time() - began}
    append_line(out, {"kind": "base", "study": study, "criterion": ""} | about | base)
    if (study, "") not in done:
        append_line(out, parts(study, dataclasses.replace(bench), truth))
        append_line(out, {"kind": "complete", "study": study, "criterion": ""})
    chosen = [cast(Criterion, rooms.build("criteria", name)) for name in rooms.names("criteria")]
    for criterion in (*chosen, Oracle(scores=truth)):
        if (study, criterion.name) in done or not fnmatch(criterion.name, only):
            continue
        fresh = dataclasses.replace(bench)  # with no evidence yet, so that its time is counted
        for row in measure_criterion(criterion, study, fresh, truth):
            append_line(out, row)
            print(json.dumps(row), flush=True)
        append_line(out, {"kind": "complete", "study": study, "criterion": criterion.name})


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file, of equal ones the newest."""
    keys = ("kind", "study", "criterion", "target", "seed")
    rows = read_lines(path) if path.exists() else []
    return list({tuple(row.get(key) for key in keys): row for row in rows}.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", nargs="?", help="name or file of a study")
    parser.add_argument("--only", default="*", help="glob of criteria")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("criteria.jsonl"))
    parser.add_argument("--markdown", type=Path, help="write the tables of the file to this page")
    options = parser.parse_args()
    if options.study:
        with threads.limited(1):
            run(options.study, options.only, options.out)
    if options.markdown:
        write_text(options.markdown, markdown(read_rows(options.out)))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
