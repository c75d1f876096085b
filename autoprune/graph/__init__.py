"""The structure engine: trace a model once, cut it many times."""

from autoprune.graph.cache import cached_trace
from autoprune.graph.parts import (
    AxisPlan,
    Block,
    Call,
    FixedBlock,
    FrozenGroup,
    Group,
    Layer,
    Place,
    Product,
    Rescale,
    Role,
    SizeAttribute,
    Tensor,
    Term,
    View,
)
from autoprune.graph.skipped import Skipped
from autoprune.graph.structure import Structure
from autoprune.graph.surgery import Selection, apply_selection
from autoprune.graph.trace import trace

__all__ = [
    "AxisPlan",
    "Block",
    "Call",
    "FixedBlock",
    "FrozenGroup",
    "Group",
    "Layer",
    "Place",
    "Product",
    "Rescale",
    "Role",
    "Selection",
    "SizeAttribute",
    "Skipped",
    "Structure",
    "Tensor",
    "Term",
    "View",
    "apply_selection",
    "cached_trace",
    "trace",
]
