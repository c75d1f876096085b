"""Measured speed of a run's models, and of single artefacts: taken, kept in measured.jsonl beside them, and shown.

What is recorded of trials stays as it is; these are lines of their own, the newest of equal ones counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoprune.errors import BadInput
from autoprune.files import append_line, read_lines

if TYPE_CHECKING:
    from autoprune.cost.timing import Protocol
    from autoprune.data import Data
    from autoprune.deployment.speed import Candidate, Measured
    from autoprune.recipe import Recipe
    from autoprune.report.front import Front
    from autoprune.study.records import TrialRecord
    from autoprune.study.run_folder import RunFolder
    from autoprune.tasks import Task

Say = Callable[[str], None]
FILE = "measured.jsonl"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to measure. quantise: a quantisation method for all models, in place of their recipes'.

    protocol: how times are taken, the default one when None.
    """

    backends: tuple[str, ...] = ("eager",)
    batch_sizes: tuple[int, ...] = (1,)
    threads: int = 1
    device: str = "cpu"
    quantise: str | None = None
    protocol: Protocol | None = None

    def check(self) -> None:
        """Raises UnknownName for a back end, MissingDependency, BadInput for a quantisation that nothing would run."""
        from autoprune.deployment.backends import BACKENDS
        from autoprune.errors import unknown_name
        from autoprune.programs import need_onnx

        for name in self.backends:
            if name not in BACKENDS:
                raise unknown_name("back end", name, BACKENDS)
        if "onnxruntime" in self.backends:
            need_onnx("measuring by onnxruntime")
        elif self.quantise is not None:
            raise BadInput("--quantise is measured by onnxruntime; add --backend onnxruntime")


def measure_run(run: RunFolder, trials: Sequence[TrialRecord], wanted: Wanted, say: Say) -> tuple[Row, ...]:
    """Measure models of a run against its base model, and record it. Raises as `measure_speed` does, and BadInput."""
    from autoprune import artefact
    from autoprune.recipe import Recipe
    from autoprune.study.worker import load_bench

    wanted.check()
    missing = [t.number for t in trials if not (run.trial(t.number) / artefact.WEIGHTS).is_file()]
    if missing:
        raise BadInput(
            f"the weights of trial {missing[0]} were not kept; measure others by --trial, or let the study keep all: "
            "checkpoints: all"
        )
    bench = load_bench(run)
    candidates = []
    for trial in trials:
        model = artefact.load_compressed(run.trial(trial.number), bench.base.model).model
        recipe = Recipe.parse(trial.recipe or {}, f"recipe of trial {trial.number}")
        candidates.append(_candidate(model, recipe, wanted, bench.data, bench.task, trial.seed or 0, say))
    names = [trial.number for trial in trials]
    return tuple(_timed(run.path, names, bench.base.model, candidates, bench.data, wanted, say))


def measure_artefact(folder: Path, wanted: Wanted, overrides: Mapping[str, Any], say: Say) -> tuple[Row, ...]:
    """Measure one artefact against its base model with initial weights, which is as fast as the trained one.

    Raises WrongArtefact when the artefact cannot build its base model, and as `measure_run` does.
    """
    from autoprune import artefact
    from autoprune.recipe import Recipe
    from autoprune.report.evaluation import artefact_setting

    wanted.check()
    manifest = artefact.read_manifest(folder)
    data, task = artefact_setting(folder, overrides)
    recipe = Recipe.parse(manifest.recipe, str(folder / artefact.RECIPE))
    seed = manifest.seeds.get("trial", 0)
    candidate = _candidate(artefact.load(folder), recipe, wanted, data, task, seed, say)
    return tuple(_timed(folder, [None], artefact.base_model(folder), [candidate], data, wanted, say))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement, of a trial, or of the folder's own model where trial is None."""

    trial: int | None
    measured: Measured

    def plain(self) -> dict[str, Any]:
        """Return plain data, with what follows from the numbers spelled out."""
        found = self.measured
        derived = {
            "flops_fraction": found.flops_fraction,
            "gained_nothing": found.gained_nothing,
            "noisy": found.is_noisy,
        }
        return {"trial": self.trial} | found.plain() | derived


def read_rows(folder: Path) -> tuple[Row, ...]:
    """Return what was measured in a folder, the newest of equal settings, in the order of their first measurement."""
    lines = read_lines(folder / FILE)
    if not lines:
        return ()
    from autoprune.deployment.speed import Measured

    found: dict[Any, Row] = {}
    for line in lines:
        row = Row(trial=line["trial"], measured=Measured.parse({k: v for k, v in line.items() if k != "trial"}))
        found[row.trial, str(row.measured.setting), row.measured.precision] = row
    return tuple(found.values())


def by_setting(rows: Sequence[Row]) -> tuple[tuple[Row, ...], ...]:
    """Return rows by setting and precision, in the order in which they were first measured: one table each."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(f"{row.measured.setting} {row.measured.precision}", []).append(row)
    return tuple(tuple(own) for own in found.values())


def heading(measured: Measured) -> str:
    """Return the heading of a measurement's column."""
    setting = measured.setting
    return f"{setting.label}, {setting.threads} thread{'s' if setting.threads > 1 else ''}, {measured.precision}"


def newest_setting(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Return the float rows of the setting that was measured last: what one column of a front may hold."""
    plain = [row for row in rows if row.measured.precision == "float32"]
    if not plain:
        return ()
    from autoprune.deployment.speed import check_one_setting

    last = max(plain, key=lambda row: row.measured.at).measured.setting
    found = tuple(row for row in plain if row.measured.setting == last)
    check_one_setting([row.measured for row in found])
    return found


def provenance(measured: Measured) -> str:
    """Return where and by what a measurement was taken."""
    setting = measured.setting
    versions = ", ".join(f"{name} {version}" for name, version in setting.versions.items())
    return f"{setting.machine} ({setting.device}), {versions}"


def told(measured: Measured) -> str:
    """Return a speed-up with its interval; ! where FLOPs fell and the time did not, ~ where times scattered.

    2.1x (2.0 - 2.3)
    """
    ratio = measured.speed_up
    marks = ("!" if measured.gained_nothing else "") + ("~" if measured.is_noisy else "")
    return f"{ratio.value:.2f}x ({ratio.low:.2f} - {ratio.high:.2f}){' ' + marks if marks else ''}"


def flops_cut(measured: Measured) -> str:
    """Return how many times fewer FLOPs there are."""
    return f"{1 / measured.flops_fraction:.2f}x"


LEGEND = (
    "FLOPs cut: by dense kernels. speed-up: the base model's median time over this model's, timed in turns in one\n"
    "process, with a 95 % interval; "
    "! FLOPs fell and the time did not; ~ times scattered."
)


def cell(front: Front, trial: TrialRecord) -> list[str]:
    """Return the measured speed-up of a trial, '-' where it was not measured; nothing where none was."""
    found = front.speed_of.get(trial.number)
    return [] if not front.speed_of else ["-" if found is None else told(found)]


def legend(front: Front) -> str:
    """Return the line that explains the column of `cell`, empty without one."""
    found = next(iter(front.speed_of.values()), None)
    return "" if found is None else f" {LEGEND} Here: {heading(found)}."


COUNTED = (
    "memory: activations of one sample that are alive at once, counted on the graph. energy: a proxy (operations and "
    "memory\ntraffic at 45 nm), no measurement. size: of weights, or of the int8 file."
)


def _candidate(model: Any, recipe: Recipe, wanted: Wanted, data: Data, task: Task, seed: int, say: Say) -> Candidate:
    from autoprune.deployment.quantised import measured_on, method_of, quantise
    from autoprune.deployment.speed import Candidate
    from autoprune.seeds import derive_seed

    method = recipe.quantisation if wanted.quantise is None else method_of(wanted.quantise)
    if method is None or "onnxruntime" not in wanted.backends:
        return Candidate(model=model)
    say(f"quantising by {method.name}")
    made = quantise(model, method, data, derive_seed(seed, "quantise"))
    found = measured_on(made, data.validation, task, 512)
    return Candidate(model=model, quantised=made, int8_accuracy=found["int8_accuracy"])


def _timed(
    folder: Path,
    names: Sequence[int | None],
    base: Any,
    candidates: Sequence[Candidate],
    data: Data,
    wanted: Wanted,
    say: Say,
) -> Iterator[Row]:
    from autoprune.deployment.speed import measure_speed

    for backend in wanted.backends:
        for size in wanted.batch_sizes:
            inputs = _batch(data, size)
            say(f"timing {len(candidates)} model{'s' if len(candidates) > 1 else ''} by {backend}, batch size {size}")
            found = measure_speed(
                base,
                candidates,
                inputs,
                backend,
                threads_used=wanted.threads,
                device=wanted.device,
                protocol=wanted.protocol,
            )
            for name, measurements in zip(names, found, strict=True):
                for measured in measurements:
                    row = Row(trial=name, measured=measured)
                    append_line(folder / FILE, {"trial": name} | measured.plain())
                    yield row


def _batch(data: Data, size: int) -> Any:
    if size > len(data.validation):
        raise BadInput(f"--batch-size {size} is more than the {len(data.validation)} samples of the validation split")
    return next(data.validation.batches(size, limit=size))[0]
