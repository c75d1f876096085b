"""A recipe: one complete choice of how to compress, as plain data.

Read from YAML (`Recipe.from_yaml`), written with every value spelled out (`Recipe.to_yaml`). The parts are the methods
of the rooms; unknown keys are errors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self, cast

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    PlainSerializer,
    model_validator,
)

from autoprune import rooms
from autoprune.allocation import Allocation
from autoprune.criteria import Criterion
from autoprune.depth import DepthCriterion
from autoprune.errors import BadRecipe, NothingToDo, UnreachableTarget
from autoprune.fields import hyperparameters
from autoprune.lowrank import LowRank
from autoprune.normalisation import Normalisation
from autoprune.quantisation import Quantisation
from autoprune.recovery import Recovery
from autoprune.regularisers import Regulariser
from autoprune.replacement import Replacement
from autoprune.schedules import Schedule
from autoprune.sparsity import Sparsity
from autoprune.specs import TrainSpec
from autoprune.training_settings import HALF_AND_THREE_QUARTERS
from autoprune.validation import validated


def _from_room(room: str) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        return value if isinstance(value, rooms.Method) or value is None else rooms.build(room, value)

    return read


def _plain(method: rooms.Method) -> dict[str, Any]:
    return method.config()


_out = PlainSerializer(_plain, return_type=dict)
CriterionPart = Annotated[InstanceOf[Criterion], BeforeValidator(_from_room("criteria")), _out]
AllocationPart = Annotated[InstanceOf[Allocation], BeforeValidator(_from_room("allocation")), _out]
SchedulePart = Annotated[InstanceOf[Schedule], BeforeValidator(_from_room("schedules")), _out]
RegulariserPart = Annotated[InstanceOf[Regulariser], BeforeValidator(_from_room("regularisers")), _out]
ReplacementPart = Annotated[InstanceOf[Replacement], BeforeValidator(_from_room("replacement")), _out]
LowRankPart = Annotated[InstanceOf[LowRank], BeforeValidator(_from_room("lowrank")), _out]
DepthPart = Annotated[InstanceOf[DepthCriterion], BeforeValidator(_from_room("depth")), _out]
SparsityPart = Annotated[InstanceOf[Sparsity], BeforeValidator(_from_room("sparsity")), _out]
QuantisationPart = Annotated[InstanceOf[Quantisation], BeforeValidator(_from_room("quantisation")), _out]
RecoveryPart = Annotated[InstanceOf[Recovery], BeforeValidator(_from_room("recovery")), _out]


class Target(BaseModel):
    """What the compressed model may cost, as fractions of the base model. Several are met together."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    flops_fraction: float | None = Field(default=0.5, gt=0, le=1)
    params_fraction: float | None = Field(default=None, gt=0, le=1)
    latency_fraction: float | None = Field(default=None, gt=0, le=1)
    """Of the time of one sample in PyTorch as it is, where trials run; met by a table of measured layers."""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if all(fraction is None for _, fraction in self):
            raise ValueError("a target needs flops_fraction, params_fraction, latency_fraction or several of them")
        return self

    @property
    def least(self) -> float:
        """The smallest of its fractions."""
        return min(float(fraction) for _, fraction in self if fraction is not None)

    @property
    def is_whole(self) -> bool:
        """Whether the base model meets the target as it is."""
        return all(fraction in (None, 1) for _, fraction in self)

    def at(self, progress: float) -> Target:
        """Return the target of a schedule's step that is `progress` (0 to 1) of the way here."""

        def part(fraction: float | None) -> float | None:
            return None if fraction is None else 1 - progress * (1 - fraction)

        return Target(**{name: part(fraction) for name, fraction in self})


class Recipe(BaseModel):
    """How to compress: what is scored, how much goes from where, when, and how accuracy is won back.

    `criterion: null` cuts no channels (then `low_rank` or `depth` has to meet the target alone); `low_rank: null`
    factorises nothing, `depth: null` skips no blocks, `replacement: null` removes all units that a cut affects.
    `min_keep_fraction` is the least share of any group that stays. `regulariser` trains before every cut. `sparsity`
    zeroes single weights of what is left after all of that; it leaves FLOPs as they are, so that a recipe of sparsity
    alone has the target 1. `quantisation` is done last, on an exported copy: the model in torch keeps float32 weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    criterion: CriterionPart | None = Field(default="l1_norm", validate_default=True)
    normalisation: Normalisation = "mean"
    allocation: AllocationPart = Field(default="uniform", validate_default=True)
    target: Target = Target()
    min_keep_fraction: float = Field(default=0.05, ge=0, le=1)
    schedule: SchedulePart = Field(default="one_shot", validate_default=True)
    start: Literal["base", "fresh"] = "base"
    """The weights that everything begins with: the base model's, or new ones of the same architecture by seed."""
    regulariser: RegulariserPart | None = None
    replacement: ReplacementPart | None = None
    low_rank: LowRankPart | None = None
    sparsity: SparsityPart | None = None
    depth: DepthPart | None = None
    recovery: tuple[RecoveryPart, ...] = Field(default=("bn_reestimation", "finetune"), validate_default=True)
    quantisation: QuantisationPart | None = None
    epochs: float = Field(default=1.0, ge=0)
    """Epochs of recovery training when the recipe runs alone; in a study the rungs say how long."""
    preset: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        exchanges = self.replacement is not None and self.replacement.whole
        if all(part is None for part in (self.criterion, self.low_rank, self.sparsity, self.depth)) and not exchanges:
            raise NothingToDo("nothing to do: criterion, low_rank, sparsity and depth are all null; set one of them")
        if self.criterion is None and self.regulariser is not None:
            raise ValueError("a regulariser prepares a cut of channels; it needs a criterion")
        in_cuts = self.replacement is not None and not self.replacement.whole
        if self.replacement is not None and in_cuts and (self.criterion is None or self.low_rank is not None):
            raise ValueError(
                f"replacement {self.replacement.name} gives a cheaper form to units that a criterion scores, in layers "
                "that stay as they are; it needs a criterion, and low_rank: null"
            )
        training = [r.name for r in self.recovery if r.trains]
        if len(training) > 1:
            raise ValueError(f"recovery: only one method may train, got {' and '.join(training)}")
        resets = [r.name for r in self.recovery if r.resets]
        lost = [r.name for r in self.recovery if r.follows_cut]
        if len(lost) > 1:
            raise ValueError(
                f"recovery: {' and '.join(lost)} correct the same layers from the model before the cut; keep one"
            )
        if resets and lost:
            raise ValueError(f"recovery: {resets[0]} would throw away what {lost[0]} corrects; leave one of them out")
        repeats = [r.name for r in self.recovery if r.like_base]
        if repeats and not resets and self.start != "fresh":
            raise ValueError(f"recovery: {repeats[0]} trains new weights; put reinitialise before it, or start: fresh")
        return self

    @property
    def methods(self) -> tuple[rooms.Method, ...]:
        """All its methods, of every room."""
        parts = (
            self.criterion,
            self.allocation,
            self.schedule,
            self.regulariser,
            self.replacement,
            self.low_rank,
            self.sparsity,
            self.depth,
            self.quantisation,
            *self.recovery,
        )
        return tuple(part for part in parts if part is not None)

    @property
    def needs(self) -> frozenset[str]:
        """Kinds of evidence that its methods look at."""
        return frozenset(kind for method in self.methods for kind in method.needs)

    @property
    def certified_at(self) -> float | None:
        """The epsilon at which its model is to be certified, None unless a part trains for that."""
        parts = (self.regulariser, *self.recovery)
        return next((part.certified_at for part in parts if part is not None and part.certified_at is not None), None)

    @classmethod
    def parse(cls, data: Mapping[str, Any] | Recipe, where: str = "recipe") -> Recipe:
        """Return the recipe described by plain data. Raises BadRecipe that names the place and what is allowed."""
        if isinstance(data, Recipe):
            return data
        return validated(cls, data, where)

    @classmethod
    def from_yaml(cls, text: str, where: str = "recipe") -> Recipe:
        """Read a recipe from YAML text. Raises BadRecipe."""
        return cls.parse(read_yaml(text, where), where)

    def plain(self) -> dict[str, Any]:
        """Return plain data that `parse` reads back into an equal recipe."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """Return YAML with every value spelled out."""
        return yaml.safe_dump(self.plain(), sort_keys=False)

    def with_target(self, **fractions: float | None) -> Recipe:
        """Return the recipe with another target."""
        return self.model_copy(update={"target": Target(**fractions)})

    def check_target(self) -> None:
        """Raises UnreachableTarget for a recipe that leaves dense kernels whole and yet has to save their cost.

        Also for a latency when it does anything but cut channels: of other layers no times are known.
        """
        other = [name for name in ("low_rank", "replacement", "depth") if getattr(self, name) is not None]
        if self.target.latency_fraction is not None and other:
            raise UnreachableTarget(
                f"a target of latency is met by times of the base model's layers at other widths, and {other[0]} makes "
                f"layers of another kind; set {' and '.join(other)} to null, or give a target of FLOPs"
            )
        if all(p is None for p in (self.criterion, self.low_rank, self.depth)) and not self.target.is_whole:
            if self.sparsity is None and self.replacement is not None:
                raise UnreachableTarget(
                    f"{self.replacement.name} alone leaves dense FLOPs as they are, so that its target must be "
                    "flops_fraction 1; what it saves depends on the input and is measured as dynamic FLOPs"
                )
            raise UnreachableTarget(
                "a recipe of sparsity alone zeroes single weights and leaves FLOPs and parameters of dense kernels as "
                "they are; its target must be flops_fraction 1. How many weights go is the method's `sparsity`; a "
                "smaller target needs a criterion, low_rank or depth as well"
            )

    def with_sparsity(self, sparsity: float) -> Recipe:
        """Return the recipe with another share of zero weights. Raises BadRecipe without a sparsity method."""
        if self.sparsity is None:
            known = ", ".join(rooms.names("sparsity"))
            raise BadRecipe(
                f"a sparsity of {sparsity:g} was asked for, but the recipe{f' {self.preset}' if self.preset else ''} "
                f"zeroes no single weights; its `sparsity` must be one of {known}"
            )
        changed = rooms.build("sparsity", self.sparsity.config() | {"sparsity": sparsity}, "sparsity")
        return self.model_copy(update={"sparsity": changed})

    def trained_like(self, base: TrainSpec) -> Recipe:
        """Return the recipe with a base model's training in the method that repeats it; without one, itself.

        Raises BadRecipe for a training that the method cannot repeat.
        """
        if not any(method.like_base for method in self.recovery):
            return self
        if base.label_smoothing or (base.schedule == "step" and base.milestones != HALF_AND_THREE_QUARTERS):
            raise BadRecipe(
                "the base model was trained with label smoothing or milestones of its own (train_base), which a "
                "training from scratch cannot repeat yet"
            )
        recovery = tuple(_like(method, base) if method.like_base else method for method in self.recovery)
        return self.model_copy(update={"recovery": recovery, "epochs": base.epochs})


def _like(method: Recovery, base: TrainSpec) -> Recovery:
    known = hyperparameters(method)
    given = {name: value for name, value in base.model_dump().items() if name in known}
    made: Recovery = dataclasses.replace(cast(Any, method), **given)
    return made


def read_yaml(text: str, where: str) -> dict[str, Any]:
    """Return the mapping in YAML text. Raises BadRecipe for anything else, with the line."""
    try:
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise BadRecipe(f"{where} is not valid YAML{place}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise BadRecipe(f"{where} is not valid YAML: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise BadRecipe(f"{where} must be a mapping of keys to values, got {type(data).__name__}")
    return data
