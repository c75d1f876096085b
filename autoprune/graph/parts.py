"""The plain data that a structure is made of."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


class Role(StrEnum):
    """What an axis of a parameter or buffer is for."""

    OUTPUT = "output"
    """weight rows of a convolution or linear layer: they produce the units"""
    INPUT = "input"
    """weight columns that read the units"""
    BIAS = "bias"
    NORM_WEIGHT = "norm_weight"
    NORM_BIAS = "norm_bias"
    NORM_MEAN = "norm_mean"
    NORM_VAR = "norm_var"
    DEPTHWISE = "depthwise"
    """weight of a depthwise convolution: one filter (or a few) for each unit"""
    OTHER = "other"


@dataclass(frozen=True, eq=False)
class Place:
    """Where the units of a group live on one axis of one tensor. indices: (C, m), row c is unit c, sorted."""

    tensor: str
    axis: int
    role: Role
    module: str
    indices: IntArray


@dataclass(frozen=True, eq=False)
class Group:
    """Units that live in the same places. flops_per_unit: FLOPs saved by removing one unit from the full
    model. kind: what a unit is: channel, head (of an attention) or head_dim (one dimension inside every head)."""

    name: str
    size: int
    places: tuple[Place, ...]
    flops_per_unit: float
    kind: str = "channel"

    def places_with(self, *roles: Role) -> tuple[Place, ...]:
        """The places that have one of these roles, in graph order."""
        return tuple(place for place in self.places if place.role in roles)

    @property
    def producers(self) -> tuple[Place, ...]:
        """Weight rows that compute the units."""
        return self.places_with(Role.OUTPUT)

    @property
    def consumers(self) -> tuple[Place, ...]:
        """Weight columns that read the units."""
        return self.places_with(Role.INPUT)

    @property
    def norms(self) -> tuple[Place, ...]:
        """Scales of the normalisation layers that the units pass."""
        return self.places_with(Role.NORM_WEIGHT)

    @property
    def is_stream(self) -> bool:
        """Whether several layers write the units: a residual stream, or channels that a layer's output gates."""
        return len({place.tensor for place in self.producers}) > 1


@dataclass(frozen=True)
class FrozenGroup:
    """Channels that cannot be cut, with the operator, the module and the reason."""

    name: str
    size: int
    operator: str
    module: str
    reason: str


@dataclass(frozen=True)
class Call:
    """Spatial sizes of one call of a layer; for a linear layer the product of the leading axes without the
    batch."""

    in_positions: tuple[int, ...]
    out_positions: tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """A convolution or linear module. Features are those of this structure with everything kept."""

    name: str
    kind: str
    weight: str
    bias: str | None
    in_features: int
    out_features: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    calls: tuple[Call, ...]


@dataclass(frozen=True)
class SizeAttribute:
    """An int attribute of a module: kept indices of (tensor, axis) * multiply // divide."""

    module: str
    attribute: str
    tensor: str
    axis: int
    multiply: int = 1
    divide: int = 1


@dataclass(frozen=True)
class Tensor:
    """Shape of one parameter or buffer."""

    shape: tuple[int, ...]
    is_parameter: bool


@dataclass(frozen=True, eq=False)
class AxisPlan:
    """The unit of every index of one axis, shape (n,): a number over all groups in their order, or -1 for
    fixed. An axis of heads times dimensions has two plans, and an index stays when both of its units do."""

    tensor: str
    axis: int
    role: Role
    module: str
    units: IntArray


@dataclass(frozen=True)
class Term:
    """FLOPs: coefficient times the number of elements of a weight."""

    weight: str
    coefficient: float


@dataclass(frozen=True)
class Product:
    """FLOPs of a product of activations: coefficient times the kept lengths of counted axes (name, full
    length). module: whose code computes it."""

    coefficient: float
    axes: tuple[tuple[str, int], ...]
    module: str = ""


@dataclass(frozen=True, eq=False)
class Rescale:
    """rows (n,) of a tensor, axis 0, to multiply by sqrt(kept length / length) of a counted axis: keeps the
    scale of an attention whose queries became narrower."""

    tensor: str
    rows: IntArray
    counter: str
    length: int


@dataclass(frozen=True)
class View:
    """A view in the code of a module: its rank, and (axis, full length, counter) of the axes that hold labels."""

    module: str
    rank: int
    axes: tuple[tuple[int, int, str], ...]


@dataclass(frozen=True)
class BlockPlan:
    """How a residual block is skipped: the argument of its module (position or keyword) that takes its place.

    first: it begins its stage, that is, no unit before it has outputs of its shape. flops_fixed: FLOPs inside it that
    no group changes.
    """

    name: str
    argument: int | str
    first: bool
    flops_fixed: float


@dataclass(frozen=True)
class Block:
    """A residual block that can be skipped. name: module path; flops, params: what the model saves without it."""

    name: str
    flops: float
    params: int
    first: bool


@dataclass(frozen=True)
class FixedBlock:
    """A block that cannot be skipped, with the reason. name: module path."""

    name: str
    reason: str


def within(path: str, name: str) -> bool:
    """Whether a module or tensor of that name is the module at `path` or below it."""
    return name == path or name.startswith(f"{path}.")


@dataclass(frozen=True)
class Part:
    """A range of an axis that the code of a module names by fixed numbers (split, slice, narrow): the rank of the
    tensor, the axis, and (full length, counter) of what lies before, inside and behind. No counter: nothing there.
    With nothing before and behind, a mean over the axis divides by the full length."""

    module: str
    rank: int
    axis: int
    lengths: tuple[tuple[int, str], ...]
