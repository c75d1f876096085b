"""What gathering evidence costs, declared for each kind, in forward passes of the model per sample looked at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from autoprune.evidence.hessian_traces import PROBES
from autoprune.evidence.kinds import Evidence


@dataclass(frozen=True, kw_only=True)
class Effort:
    """Forward passes for each sample: so many, and so many for each unit and each output of the model.

    A backward pass counts as two forward passes.
    """

    passes: float = 0.0
    per_unit: float = 0.0
    per_output: float = 0.0

    def of(self, units: int, outputs: int) -> float:
        """Return the forward passes for a model of so many units and outputs."""
        return self.passes + self.per_unit * units + self.per_output * outputs

    def __add__(self, other: Effort) -> Effort:
        return Effort(
            passes=self.passes + other.passes,
            per_unit=self.per_unit + other.per_unit,
            per_output=self.per_output + other.per_output,
        )

    def __str__(self) -> str:
        parts = ((self.passes, ""), (self.per_unit, " per unit"), (self.per_output, " per output"))
        return " + ".join(f"{value:g}{suffix}" for value, suffix in parts if value) or "0"


_FORWARD = Effort(passes=1)
_GRADIENT = Effort(passes=3)
_AGAIN = 6
"""The derivative of a gradient: back through a backward and a forward pass."""

EFFORT: Mapping[Evidence, Effort] = {
    Evidence.WEIGHTS: Effort(),
    Evidence.READINGS: Effort(),
    Evidence.EXEMPLARS: Effort(),
    Evidence.ACTIVATIONS: _FORWARD,
    Evidence.NEXT_LAYER: _FORWARD,
    Evidence.FINAL_RESPONSES: _FORWARD,
    # products of all pairs of a layer's inputs: about nine times a 3x3 convolution that keeps the width
    Evidence.INPUT_MOMENTS: Effort(passes=9),
    Evidence.GATE_GRADIENTS: _GRADIENT,
    Evidence.EXAMPLE_GATE_GRADIENTS: _GRADIENT,
    # products of all pairs of a layer's outputs add less than one pass
    Evidence.FILTER_GRADIENTS: Effort(passes=4),
    # once with the norms' parameters, once without
    Evidence.UNIT_CURVATURE: Effort(passes=2 * (3 + _AGAIN)),
    Evidence.GAUSS_NEWTON: Effort(passes=3, per_output=2),
    Evidence.HESSIAN_TRACES: Effort(passes=3 + _AGAIN * PROBES),
    # by the true and by drawn labels, and products of all pairs of a layer's outputs
    Evidence.KRONECKER: Effort(passes=6),
    Evidence.GATE_CURVATURE: Effort(passes=3, per_unit=_AGAIN),
}
"""What a recipe measures by itself is counted by the trial that does it.

Rounded for networks of 3x3 convolutions; some kinds look at fewer samples than others, as their files say."""


def effort_of(kinds: Iterable[str]) -> Effort:
    """Return what gathering all of these kinds takes, each once."""
    total = Effort()
    for kind in kinds:
        total = total + EFFORT[Evidence(kind)]
    return total
