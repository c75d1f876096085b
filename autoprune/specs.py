"""What a study says of its model, data, task and base training: pure data, read without importing torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from autoprune.errors import BadInput
from autoprune.fields import Integer, Real, hyperparameters
from autoprune.training_settings import HALF_AND_THREE_QUARTERS, RateSchedule, TrainingSettings
from autoprune.validation import validated

_VARIABLE = re.compile(r"\$\{?(\w+)\}?")


class Spec(BaseModel):
    """Base of the specs: immutable, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSpec(Spec):
    """A model by name or by `package.module:function`."""

    name: str = Field(min_length=1, description="a known name, or package.module:function returning an nn.Module")
    arguments: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the model")
    weights: str | None = Field(default=None, description="path of a .safetensors or a .pt/.pth file")


class TaskSpec(Spec):
    """What is learned. Without functions: classification, by cross entropy and accuracy."""

    loss: str | None = Field(default=None, description="package.module:function(output, targets) -> mean loss")
    metric: str | None = Field(
        default=None, description="package.module:function(output, targets) -> (sum of the scores, how many)"
    )
    metric_name: str = Field(default="accuracy", min_length=1)

    @model_validator(mode="after")
    def _loss_and_metric_together(self) -> Self:
        if (self.loss is None) != (self.metric is None):
            raise ValueError("loss and metric are given together or not at all")
        return self


def _setting(name: str, default: Any = None) -> Any:
    """Return the field of a training's setting: its range and help are those of `TrainingSettings`."""
    declared = hyperparameters(TrainingSettings)[name]
    bounds: dict[str, Any] = {}
    if isinstance(declared, Real | Integer):
        bounds = {"ge": declared.valid[0], "le": declared.valid[1]}
    return Field(default=declared.default if default is None else default, description=declared.help, **bounds)


class TrainSpec(Spec):
    """How a base model without weights is trained."""

    epochs: float = Field(default=20.0, gt=0, description="passes over the training data")
    optimizer: Literal["sgd", "adamw"] = _setting("optimizer")
    lr: float = _setting("lr", 0.1)
    momentum: float = _setting("momentum")
    weight_decay: float = _setting("weight_decay")
    batch_size: int = _setting("batch_size", 64)
    schedule: RateSchedule = _setting("schedule")
    milestones: tuple[float, ...] = Field(
        default=HALF_AND_THREE_QUARTERS, description="parts of the training, 0 to 1, at which `step` lowers the rate"
    )
    warmup_fraction: float = _setting("warmup_fraction", 0.1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _milestones_rise(self) -> Self:
        inside = all(0 < m < 1 for m in self.milestones)
        if not inside or list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must rise and lie between 0 and 1, got {list(self.milestones)}")
        return self

    @property
    def settings(self) -> TrainingSettings:
        """What it says of the gradient descent, without epochs, milestones and label smoothing."""
        return TrainingSettings(**{name: getattr(self, name) for name in hyperparameters(TrainingSettings)})


Augment = Literal["none", "flip", "crop_flip"]

# Which fields mean something for which kind of data; a field that would be ignored is an error instead.
_SPLITTING = frozenset({"name", "validation_fraction", "seed"})
_IMAGES = _SPLITTING | {"root", "size", "mean", "std", "augment", "cache", "workers"}
_FIELDS_OF_KIND: dict[str, frozenset[str]] = {
    "digits": _SPLITTING | {"augment"},
    "image_folder": _IMAGES,
    "function": _SPLITTING | {"arguments", "workers"},
    "torchvision": _IMAGES | {"download", "arguments"},
}


class DataSpec(Spec):
    """A data set by name or by `package.module:function`. Which fields apply depends on the kind of data."""

    name: str = Field(min_length=1, description="digits, image_folder, a torchvision data set, package.module:function")
    root: str | None = Field(default=None, description="folder or .zip file; $VARIABLES and ~ are expanded")
    size: int | None = Field(default=None, ge=1, description="resize the shorter side to this, then crop the centre")
    mean: tuple[float, ...] | None = Field(default=None, description="per channel, of inputs scaled to [0, 1]")
    std: tuple[float, ...] | None = Field(default=None, description="per channel, of inputs scaled to [0, 1]")
    augment: Augment = Field(default="none", description="what training does to its images")
    validation_fraction: float = Field(default=0.1, gt=0, lt=1, description="part of train kept for validation")
    seed: int = Field(default=0, ge=0, description="of the split into train and validation")
    cache: Literal["memory", "none"] = Field(default="none", description="memory: decode once, keep as uint8")
    download: bool = False
    workers: int = Field(default=0, ge=0, description="processes that read images, with cache: none")
    arguments: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the data set")

    @property
    def kind(self) -> str:
        """Which of digits, image_folder, function, torchvision this is."""
        if self.name in ("digits", "image_folder"):
            return self.name
        return "function" if ":" in self.name else "torchvision"

    @model_validator(mode="after")
    def _fields_fit(self) -> Self:
        allowed = _FIELDS_OF_KIND[self.kind]
        useless = sorted(self.model_fields_set - allowed)
        if useless:
            raise ValueError(f"{self.name} takes no {', '.join(useless)}; it takes {', '.join(sorted(allowed))}")
        if self.kind == "image_folder" and self.root is None:
            raise ValueError("image_folder needs root: a folder or a .zip file")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std are given together or not at all")
        if self.mean is not None and self.std is not None:
            if len(self.mean) != len(self.std):
                raise ValueError(f"mean has {len(self.mean)} values, std has {len(self.std)}; one per channel each")
            if min(self.std, default=1.0) <= 0:
                raise ValueError("every std must be greater than 0")
        return self


S = TypeVar("S", bound=BaseModel)


def as_spec(cls: type[S], value: S | Mapping[str, Any], where: str) -> S:
    """Return the spec itself, or one read from a mapping. Raises BadInput with one line per mistake."""
    return value if isinstance(value, cls) else validated(cls, value, where, BadInput)


def expand_path(path: str, where: str) -> Path:
    """Expand ~ and environment variables. Raises BadInput when a variable is not set."""
    missing = [name for name in _VARIABLE.findall(path) if name not in os.environ]
    if missing:
        raise BadInput(f"{where} is {path!r}, but the environment variable {missing[0]} is not set.")
    return Path(os.path.expandvars(path)).expanduser()
