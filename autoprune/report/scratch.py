"""What the architectures of a front are worth without inherited weights: each trained from scratch, after the search.

Liu et al., ICLR 2019, arXiv 1810.05270. Results lie in `scratch.jsonl` of the run folder, one line per training, and
what is there is not trained again. The search never sees them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from autoprune.budget import training_flops
from autoprune.errors import BadInput
from autoprune.files import append_line, read_lines

if TYPE_CHECKING:
    from autoprune.recipe import Recipe
    from autoprune.study.config import StudyConfig
    from autoprune.study.records import TrialRecord
    from autoprune.study.run_folder import RunFolder
    from autoprune.trial import Bench

Arm = Literal["e", "b"]
ARMS: tuple[Arm, ...] = ("e", "b")
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ScratchRun:
    """One training from scratch of a trial's architecture. Accuracies in 0..1; epochs: those of the base model (E0).

    training_flops: what this training took, 3 times a forward pass per sample.
    """

    trial: int
    arm: Arm
    seed: int
    epochs: float
    trained_samples: int
    training_flops: float
    accuracy: float
    test_accuracy: float | None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Several trainings of one architecture."""

    runs: tuple[ScratchRun, ...]

    @property
    def on_test(self) -> bool:
        """Whether the test split was measured."""
        return all(run.test_accuracy is not None for run in self.runs)

    @property
    def accuracies(self) -> list[float]:
        """One accuracy for each seed: on the test split where it was measured, otherwise on the validation split."""
        return [
            run.accuracy if run.test_accuracy is None or not self.on_test else run.test_accuracy for run in self.runs
        ]

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return statistics.mean(self.accuracies)

    @property
    def spread(self) -> float:
        """Standard deviation over seeds, 0 for a single one."""
        return statistics.stdev(self.accuracies) if len(self.runs) > 1 else 0.0


def read_runs(folder: Path) -> tuple[ScratchRun, ...]:
    """Return the trainings recorded in a run folder, of equal ones the newest."""
    rows = (ScratchRun(**row) for row in read_lines(_file(folder)))
    return tuple({(r.trial, r.arm, r.seed, r.epochs): r for r in rows}.values())


def summaries(folder: Path) -> Mapping[tuple[int, Arm], Summary]:
    """Return the trainings by trial and arm; where budgets differ, those of the largest E0."""
    found: dict[tuple[int, Arm], list[ScratchRun]] = {}
    for run in read_runs(folder):
        found.setdefault((run.trial, run.arm), []).append(run)
    most = {key: max(run.epochs for run in runs) for key, runs in found.items()}
    return {key: Summary(runs=tuple(r for r in runs if r.epochs == most[key])) for key, runs in found.items()}


def train_from_scratch(
    run: RunFolder,
    trials: Sequence[TrialRecord],
    *,
    arms: Sequence[Arm] = ARMS,
    seeds: int = 3,
    epochs: float | None = None,
    say: Say = lambda text: None,
) -> tuple[ScratchRun, ...]:
    """Train what is missing for these trials, and return all that was asked for.

    epochs: E0, in place of those of the study's own base training.
    Raises BadInput when the base model came with weights and no epochs are given, LossNotFinite, OutOfMemory.
    """
    from autoprune import threads
    from autoprune.study.worker import load_bench

    config = run.config()
    recipes = {arm: _recipe(config, arm, epochs) for arm in arms}
    done = {(r.trial, r.arm, r.seed, r.epochs): r for r in read_runs(run.path)}
    wanted = [(t, arm, seed) for t in trials for arm in arms for seed in range(seeds)]
    asked = [(t.number, arm, seed, recipes[arm].epochs) for t, arm, seed in wanted]
    if not set(asked) <= set(done):
        with threads.limited(config.executor.threads):
            bench = load_bench(run)
            for (trial, arm, seed), key in zip(wanted, asked, strict=True):
                if key not in done:
                    say(f"trial {trial.number}, scratch-{arm.upper()}, seed {seed}, E0 {recipes[arm].epochs:g}")
                    done[key] = _train(run, bench, trial.number, arm, seed, recipes[arm])
                    append_line(_file(run.path), asdict(done[key]))
    return tuple(done[key] for key in asked)


def _recipe(config: StudyConfig, arm: Arm, epochs: float | None) -> Recipe:
    from autoprune import presets

    recipe = presets.load(f"scratch_{arm}")
    if config.model.weights is None:
        recipe = recipe.trained_like(config.train_base)
    elif epochs is None:
        raise BadInput(
            "the base model came with weights, so that it is not known how long it was trained; say it: --epochs"
        )
    return recipe if epochs is None else recipe.model_copy(update={"epochs": epochs})


def _train(run: RunFolder, bench: Bench, trial: int, arm: Arm, seed: int, recipe: Recipe) -> ScratchRun:
    from autoprune import artefact
    from autoprune.seeds import derive_seed
    from autoprune.tasks import evaluate
    from autoprune.trial import measure, restart

    compressed = artefact.load_compressed(run.trial(trial), bench.base.model)
    model = bench.laid_out(compressed.model.to(bench.device))
    spent = restart(compressed, recipe, bench, derive_seed(run.config().seed, "scratch", trial, arm, seed))
    measured = measure(model, bench)
    size, test = bench.settings.eval_batch_size, bench.data.test
    return ScratchRun(
        trial=trial,
        arm=arm,
        seed=seed,
        epochs=recipe.epochs,
        trained_samples=spent.trained_samples,
        training_flops=training_flops(1.0, spent.trained_samples, measured.flops),
        accuracy=measured.accuracy,
        test_accuracy=None if test is None else evaluate(model, test, bench.task, size, device=bench.device).accuracy,
    )


def rows(folder: Path, trials: Sequence[TrialRecord]) -> Iterator[dict[str, Any]]:
    """Yield one plain row per trial: its finetuned accuracy, that of each arm, and weight_value.

    weight_value: finetuned minus scratch-B on the same split. Values are None where nothing was trained.
    """
    from autoprune.report.quality import float_accuracy, name_of

    found = summaries(folder)
    for trial in trials:
        arms = {arm: found.get((trial.number, arm)) for arm in ARMS}
        on_test = all(s.on_test for s in arms.values() if s is not None)
        # new weights are float32, and so is what they are compared with
        own = float_accuracy(trial, on_test=on_test)
        row: dict[str, Any] = {
            "trial": trial.number,
            "name": name_of(trial),
            "split": "test" if on_test else "validation",
        }
        row["finetuned"] = own
        for arm, summary in arms.items():
            row[f"scratch_{arm}"] = None if summary is None else summary.mean
            row[f"scratch_{arm}_sd"] = None if summary is None else summary.spread
            row[f"scratch_{arm}_seeds"] = 0 if summary is None else len(summary.runs)
            row[f"scratch_{arm}_training_flops"] = (
                None if summary is None else statistics.mean(run.training_flops for run in summary.runs)
            )
        row["weight_value"] = None if arms["b"] is None else own - arms["b"].mean
        yield row


def _file(folder: Path) -> Path:
    return folder / "scratch.jsonl"
