"""study.yaml: what a study is, as pure data. Reading it imports neither torch nor Optuna nor Ray.

`load` reads a file, the name of a shipped study, or plain data, applies overrides, expands ${VARIABLES}, and keeps
where every value came from.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BeforeValidator, Field, field_validator, model_validator

from autoprune import shipped
from autoprune.errors import BadInput, BadRecipe
from autoprune.recipe import Target, read_yaml
from autoprune.search.objectives import OF_DEPLOYED, of_deployed
from autoprune.settings import TrialSettings
from autoprune.specs import DataSpec, ModelSpec, Spec, TaskSpec, TrainSpec
from autoprune.validation import validated

Objective = Literal[
    "accuracy",
    "flops",
    "sparse_flops",
    "dynamic_flops",
    "params",
    "latency",
    "certified_error",
    "size",
    "memory",
    "energy",
]
SamplerName = Literal["tpe", "nsga2", "gp", "random"]
ExecutorName = Literal["inline", "local", "ray", "replay"]

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def _target(value: Any) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return {"flops_fraction": value}
    if isinstance(value, Mapping):
        # a target given by parameters alone says nothing about FLOPs
        return {"flops_fraction": None, **value}
    return value


def _seconds(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    found = _DURATION.fullmatch(value.replace(" ", ""))
    if not value.strip() or found is None:
        raise ValueError("a duration is a number of seconds or like '90s', '30m', '1h30m'")
    hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return 3600 * hours + 60 * minutes + seconds


class StructureSpec(Spec):
    """What the structure engine may cut."""

    exclude: tuple[str, ...] = Field(default=(), description="globs of module paths that stay untouched")
    round_to: int = Field(default=1, ge=1, description="kept units are a multiple of this")


class SamplerSpec(Spec):
    """Who proposes recipes."""

    name: SamplerName = "tpe"
    startup: int | None = Field(
        default=None,
        ge=0,
        description="trials drawn at random first; by default a fifth of the budget, 4 to 10",
    )


class RungSpec(Spec):
    """The fidelity levels of a trial. Rung k trains up to epochs[k] in total."""

    epochs: tuple[float, ...] = Field(default=(0.0, 0.5, 2.0), description="total epochs at each rung, from 0")
    reduction: float = Field(default=3.0, gt=1, description="one in this many trials is promoted")
    noise: float = Field(
        default=1.0,
        ge=0,
        description="standard errors of the accuracy within which a lead is none; 0 trusts every digit",
    )
    validation_samples: tuple[int | None, ...] | None = Field(
        default=None, description="samples that each rung is judged on; null: all of the validation split"
    )

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if not self.epochs or self.epochs[0] != 0:
            raise ValueError(f"epochs must begin with 0 (rung 0 does not train), got {list(self.epochs)}")
        if any(b <= a for a, b in zip(self.epochs, self.epochs[1:], strict=False)):
            raise ValueError(f"epochs must rise from rung to rung, got {list(self.epochs)}")
        if self.validation_samples is not None and len(self.validation_samples) != len(self.epochs):
            raise ValueError(
                f"validation_samples needs one number for each of the {len(self.epochs)} rungs, "
                f"got {len(self.validation_samples)}"
            )
        return self

    @property
    def top(self) -> int:
        """The last rung."""
        return len(self.epochs) - 1

    def trained(self, rung: int) -> float:
        """Return the epochs that this rung adds."""
        return self.epochs[rung] - (self.epochs[rung - 1] if rung else 0.0)

    def samples(self, rung: int) -> int | None:
        """Return how many validation samples this rung is judged on; None is all."""
        return None if self.validation_samples is None else self.validation_samples[rung]


class BudgetSpec(Spec):
    """How long a study runs: until any is used up. Resuming goes on with what is left."""

    trials: int = Field(default=24, ge=1, description="trials, baselines included")
    time: Annotated[float | None, BeforeValidator(_seconds)] = Field(
        default=None, gt=0, description="seconds, or like 30m; no job is begun after it"
    )
    worker_time: Annotated[float | None, BeforeValidator(_seconds)] = Field(
        default=None, gt=0, description="the same for the time of all workers added up: 8h is 8 hours of one worker"
    )
    patience: int | None = Field(
        default=None, ge=1, description="stop when so many trials in a row, baselines aside, have not moved the front"
    )
    patience_time: Annotated[float | None, BeforeValidator(_seconds)] = Field(
        default=None, gt=0, description="stop when the front has not moved for so long: seconds, or like 30m"
    )


class ExecutorSpec(Spec):
    """Where trials run."""

    name: ExecutorName = "local"
    workers: int | None = Field(default=None, ge=1, description="by default as many as the machine or cluster fits")
    threads: int = Field(default=1, ge=1, description="CPU threads of each worker")
    cpus_per_trial: float | None = Field(default=None, ge=0, description="Ray CPUs; by default `threads`")
    gpus_per_trial: float = Field(default=0.0, ge=0, description="Ray GPUs, fractions allowed")
    max_failures: int = Field(default=1, ge=0, description="times a job is run again when its worker dies")
    address: str | None = Field(default=None, description="of a Ray cluster; by default one starts on this machine")
    table: str | None = Field(
        default=None, description="for `replay`: a table of outcomes, or the run folder of a study, to answer from"
    )

    @model_validator(mode="after")
    def _table_to_replay(self) -> Self:
        if self.name == "replay" and self.table is None:
            raise ValueError("replay needs executor.table: a table of outcomes, or a study's run folder")
        return self

    def worker_count(self) -> int:
        """Return the number of local workers."""
        return self.workers or max(1, len(os.sched_getaffinity(0)) // self.threads)


class StudyConfig(Spec):
    """One study."""

    name: str = Field(min_length=1, pattern=r"^[\w.\-]+$")
    model: ModelSpec
    train_base: TrainSpec = Field(default_factory=TrainSpec, description="for a model without weights")
    data: DataSpec
    task: TaskSpec = Field(default_factory=TaskSpec)
    structure: StructureSpec = Field(default_factory=StructureSpec)
    targets: tuple[Annotated[Target, BeforeValidator(_target)], ...] = Field(
        default=(0.5,), validate_default=True, description="fractions of the base model's FLOPs"
    )
    objectives: tuple[Objective, ...] = ("accuracy", "flops")
    search_space: str | dict[str, Any] = Field(
        default="channels",
        description="a name, a path, a mapping, or package.module:function(trial) -> Recipe",
    )
    sampler: SamplerSpec = Field(default_factory=SamplerSpec)
    baselines: tuple[str | dict[str, Any], ...] = Field(
        default=("uniform_l1", "global_taylor"),
        description="names, recipe files or recipes; trained to the end at every target",
    )
    warm_start: str | tuple[str | dict[str, Any], ...] = Field(
        default=("fitted_ranks", "knapsack"),
        description="where the search begins, before the baselines: a run folder of an earlier study, whose best "
        "recipes run; or a list of recipes with targets, and of names, which run at every target where the search "
        "space has methods of their kind",
    )
    checkpoints: Literal["front", "all"] = Field(
        default="front",
        description="weights that stay: of running trials, the front, the best at each target and baselines; or all",
    )
    rungs: RungSpec = Field(default_factory=RungSpec)
    budget: BudgetSpec = Field(default_factory=BudgetSpec)
    trial: TrialSettings = Field(default_factory=TrialSettings)
    executor: ExecutorSpec = Field(default_factory=ExecutorSpec)
    storage: str | None = Field(default=None, description="Optuna storage URL; by default study.db in the run folder")
    seed: int = Field(default=0, ge=0)

    @field_validator("targets")
    @classmethod
    def _distinct(cls, targets: tuple[Target, ...]) -> tuple[Target, ...]:
        if not targets:
            raise ValueError("a study needs at least one target")
        if len({target_label(t) for t in targets}) != len(targets):
            raise ValueError("the same target is given twice")
        return targets

    @field_validator("objectives")
    @classmethod
    def _with_accuracy(cls, objectives: tuple[Objective, ...]) -> tuple[Objective, ...]:
        if "accuracy" not in objectives or len(set(objectives)) != len(objectives):
            allowed = ", ".join(name for name in get_args(Objective) if name != "accuracy")
            raise ValueError(f"objectives are accuracy and any of {allowed}, each once")
        if of_deployed(objectives) and (mixed := sorted({"latency", "certified_error"} & set(objectives))):
            raise ValueError(
                f"{', '.join(OF_DEPLOYED)} and the accuracy beside them are of the deployed file, "
                f"{' and '.join(mixed)} of the float32 model in PyTorch; they cannot be objectives of one study"
            )
        return objectives

    @model_validator(mode="after")
    def _certified_at(self) -> Self:
        if "certified_error" in self.objectives and self.trial.certified_epsilon is None:
            raise ValueError("the objective certified_error needs an epsilon: trial.certified_epsilon, such as 0.01")
        return self

    def plain(self) -> dict[str, Any]:
        """Return plain data that `load` reads back into an equal config."""
        # which data fields may be written depends on the kind of data, so that defaults stay unwritten
        return self.model_dump(mode="json") | {"data": self.data.model_dump(mode="json", exclude_unset=True)}

    def to_yaml(self) -> str:
        """Return YAML with every value spelled out."""
        return yaml.safe_dump(self.plain(), sort_keys=False)


def times_trials(config: StudyConfig) -> bool:
    """Tell whether trials are timed: for the objective latency, or beside a target of it."""
    return "latency" in config.objectives or any(target.latency_fraction is not None for target in config.targets)


def target_label(target: Target) -> str:
    """Return a target's short name.

    >>> target_label(Target(flops_fraction=0.5))
    'flops=0.5'
    """
    parts = {name.removesuffix("_fraction"): fraction for name, fraction in target}
    return ",".join(f"{name}={value:g}" for name, value in parts.items() if value is not None)


@dataclass(frozen=True)
class Loaded:
    """A config, and for every dotted key where its value came from: default, file, flag or environment."""

    config: StudyConfig
    origins: Mapping[str, str]
    source: str


def load(study: str | Path | Mapping[str, Any] | StudyConfig, overrides: Mapping[str, Any] | None = None) -> Loaded:
    """Read a study and apply overrides (dotted key to value, as the command line gives them).

    Raises BadRecipe that names the place and what is allowed, UnknownName for a study that is nowhere, BadInput for an
    environment variable that is not set.
    """
    data, source = _read(study)
    given = dict.fromkeys((path for path, _ in leaves(data)), "file" if source != "plain data" else "given")
    for key, value in (overrides or {}).items():
        _put(data, key, value)
        given = {k: v for k, v in given.items() if k != key and not k.startswith(f"{key}.")}
        given |= dict.fromkeys((path for path, _ in leaves(value, key)), "flag")
    expanded, from_environment = _expand(data, "")
    given |= dict.fromkeys(from_environment, "environment")
    config = validated(StudyConfig, expanded, source)
    origins = {path: _origin(path, given) for path, _ in leaves(config.model_dump(mode="json"))}
    return Loaded(config, origins, source)


def parse_override(text: str) -> tuple[str, Any]:
    """Return key and value of `a.b=c`; the value is read as YAML. Raises BadInput."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.strip().split(".")):
        raise BadInput(f"--set takes KEY=VALUE, for example data.root=/data, got {text!r}")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise BadInput(f"--set {key.strip()}: the value {value!r} is not valid YAML: {error}") from error


def expand(text: str, where: str) -> str:
    """Replace ${NAME} and ${NAME:-default} in a string. Raises BadInput when a variable is not set."""

    def value(found: re.Match[str]) -> str:
        name, default = found.groups()
        if name not in os.environ and default is None:
            raise BadInput(
                f"{where} needs the environment variable {name}, which is not set. "
                f"Set it, or give the value on the command line: --set {where}=..."
            )
        return os.environ.get(name, default or "")

    return _VARIABLE.sub(value, text)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted path and value of everything in nested mappings that is no mapping itself."""
    if isinstance(value, Mapping) and (value or not path):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _read(study: str | Path | Mapping[str, Any] | StudyConfig) -> tuple[dict[str, Any], str]:
    if isinstance(study, StudyConfig):
        return study.plain(), "plain data"
    if isinstance(study, Mapping):
        return copy.deepcopy(dict(study)), "plain data"
    path = study if isinstance(study, Path) else shipped.find("studies", study)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"study file {path} cannot be read: {error}") from error
    return read_yaml(text, str(path)), str(path)


def _put(data: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    at = data
    for i, part in enumerate(parents):
        inner = at.setdefault(part, {})
        if not isinstance(inner, dict):
            raise BadRecipe(f"{key}: {'.'.join(parents[: i + 1])} is {inner!r}, which has no keys")
        at = inner
    at[last] = value


def _expand(value: Any, path: str) -> tuple[Any, list[str]]:
    # The storage URL may hold a password: it is expanded when it is opened, not where it is written down.
    if path == "storage":
        return value, []
    if isinstance(value, str):
        made = expand(value, path)
        return made, [path] if made != value else []
    if isinstance(value, Mapping):
        parts = {k: _expand(v, f"{path}.{k}" if path else str(k)) for k, v in value.items()}
        return {k: made for k, (made, _) in parts.items()}, [p for _, found in parts.values() for p in found]
    if isinstance(value, list | tuple):
        items = [_expand(v, path) for v in value]
        return [made for made, _ in items], [path] if any(found for _, found in items) else []
    return value, []


def _origin(path: str, given: Mapping[str, str]) -> str:
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        origin = given.get(".".join(parts[:length]))
        if origin is not None:
            return origin
    return "default"
