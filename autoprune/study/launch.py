"""Run a study from beginning to end, or go on with one that was interrupted."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoprune.errors import BadInput
from autoprune.files import append_line, read_json
from autoprune.study import events
from autoprune.study.config import StudyConfig, load
from autoprune.study.disk import Keeper
from autoprune.study.executors import build_executor
from autoprune.study.jobs import WorkerFactory
from autoprune.study.records import StudyRecord, check_owner, opened, read_study
from autoprune.study.run_folder import RunFolder, default_run, find_run, self_contained


def launch(
    study: str | Path | Mapping[str, Any] | StudyConfig,
    *,
    run_dir: str | Path | None = None,
    listen: events.Listener = events.ignore,
) -> StudyRecord:
    """Run a study in its run folder, by default runs/<name>, and return its record.

    An existing run folder is resumed: nothing that was recorded is done again. Events go to `listen` and to log.jsonl.
    On KeyboardInterrupt running jobs are abandoned, and the same call goes on later.
    Raises BadInput of all kinds, and Failure when the base model or the workers fail.
    """
    config = self_contained(load(study).config)
    run = RunFolder(Path(run_dir or default_run(config)).expanduser().absolute())
    with run.locked():
        config = _started_warm(run, config)
        run.freeze(config)
        tell = functools.partial(_tell_all, run, (Keeper(run, config).hear, listen))
        try:
            _run(run, config, tell, _prepared(run, config, tell))
        except KeyboardInterrupt:
            tell(events.StudyInterrupted(folder=str(run.path)))
            raise
    return read_study(config, run.path)


def _started_warm(run: RunFolder, config: StudyConfig) -> StudyConfig:
    """Return the study with the recipes that it starts from. Once it has begun they stay, whatever the other one does.

    Raises UnknownName for a run folder that is nowhere, BadInput for one without a finished trial.
    """
    if run.study_file.is_file() and run.base_file.is_file():
        return config.model_copy(update={"warm_start": run.config().warm_start})
    if not isinstance(config.warm_start, str):
        return config
    from autoprune.study.learned import best_recipes

    earlier = find_run(config.warm_start)
    recipes = best_recipes(read_study(earlier.config(), earlier.path), config.targets)
    return config.model_copy(update={"warm_start": tuple(recipes)})


def _prepared(run: RunFolder, config: StudyConfig, listen: events.Listener) -> WorkerFactory:
    """Fill the run folder and return how workers are made. Raises BadInput for a folder of the other kind."""
    from autoprune.study import replay

    if run.base_file.is_file() and replay.is_replayed(run) != (config.executor.name == "replay"):
        raise BadInput(
            f"{run.path} holds a study that was {'replayed' if replay.is_replayed(run) else 'trained'}; "
            "use another run folder (--run-dir)"
        )
    if config.executor.name == "replay":
        table = replay.Table.read(Path(config.executor.table or ""))
        table.check_fits(config)
        table.fill(run)
        return functools.partial(replay.ReplayWorker, table)
    # imports torch; a finished study is read without it
    from autoprune.study.preparation import prepare_run
    from autoprune.study.worker import make_worker

    prepare_run(run, config, listen)
    return functools.partial(make_worker, run.path)


def _run(run: RunFolder, config: StudyConfig, listen: events.Listener, factory: WorkerFactory) -> None:
    from autoprune.graph import Structure
    from autoprune.search.space import load_space
    from autoprune.study.controller import Controller

    structure = Structure.from_json(run.structure_file.read_text(encoding="utf-8"))
    base = read_json(run.base_file)["metrics"]
    executor = build_executor(config.executor)
    with opened(config, run.path) as storage:
        check_owner(storage, config, run.identity())
        controller = Controller(
            config,
            load_space(config.search_space),
            structure,
            storage,
            listen=listen,
            test="test_accuracy" in base and config.executor.name != "replay",
            clock=executor.clock,
        )
        controller.record_base(base, run.identity())
        if controller.has_work():
            executor.run(controller, factory, run.path)


def _tell_all(run: RunFolder, listeners: Sequence[events.Listener], event: events.Event) -> None:
    if not isinstance(event, events.Preparing) or event.done in (0, event.total):
        append_line(run.log, {"time": round(time.time(), 3)} | event.plain())
    for listen in listeners:
        listen(event)
