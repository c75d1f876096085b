"""Closed-form cost: every axis length is fixed + sum over groups of multiplicity * kept units.

The units of a group live in the same places, so the length of an axis depends on how many units are kept
and not on which. FLOPs and parameters are sums of coefficient * length * length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from autoprune.graph.structure import Structure

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Products:
    """T terms coefficients * length[firsts] * length[seconds], over lengths whose entry 0 is 1."""

    coefficients: FloatArray
    firsts: IntArray
    seconds: IntArray

    def each(self, lengths: FloatArray) -> FloatArray:
        """(T,) value of each term."""
        result: FloatArray = self.coefficients * lengths[self.firsts] * lengths[self.seconds]
        return result


@dataclass(frozen=True, eq=False)
class CostTable:
    """Lengths of A axes from counts of G groups, and the products that cost is made of."""

    fixed: FloatArray
    multiplicity: FloatArray
    flops_terms: Products
    flops_fixed: float
    params_terms: Products
    params_fixed: float
    layer_terms: Products
    layer_in: Products
    layer_out: Products

    @staticmethod
    def build(structure: Structure) -> CostTable:
        """Derive all tables from the plan."""
        return _Builder(structure).table()

    def lengths(self, counts: NDArray[Any]) -> FloatArray:
        """(A,) kept length of each axis."""
        result: FloatArray = self.fixed + self.multiplicity @ counts
        return result

    def flops(self, counts: NDArray[Any]) -> float:
        """FLOPs of one sample."""
        return float(self.flops_terms.each(self.lengths(counts)).sum()) + self.flops_fixed

    def params(self, counts: NDArray[Any]) -> float:
        """Number of parameters."""
        return float(self.params_terms.each(self.lengths(counts)).sum()) + self.params_fixed

    def layer_flops(self, counts: NDArray[Any]) -> FloatArray:
        """(L,) FLOPs of each layer."""
        return self.layer_terms.each(self.lengths(counts))

    def layer_widths(self, counts: NDArray[Any]) -> FloatArray:
        """(L, 2) in and out features."""
        lengths = self.lengths(counts)
        return np.stack([self.layer_in.each(lengths), self.layer_out.each(lengths)], axis=1)


class _Builder:
    def __init__(self, structure: Structure) -> None:
        self.structure = structure
        self.rows = {(plan.tensor, plan.axis): i + 1 for i, plan in enumerate(structure.axes)}

    def table(self) -> CostTable:
        structure = self.structure
        fixed, multiplicity = self._axes()
        parameters = [name for name, tensor in structure.tensors.items() if tensor.is_parameter]
        planned = {name for name, _ in self.rows}
        constant = [name for name in parameters if name not in planned]
        coefficients = {term.weight: term.coefficient for term in structure.terms}
        layers = structure.layers
        return CostTable(
            fixed=fixed,
            multiplicity=multiplicity,
            flops_terms=self._sizes({term.weight: term.coefficient for term in structure.terms}),
            flops_fixed=structure.flops_fixed,
            params_terms=self._sizes({name: 1.0 for name in parameters if name in planned}),
            params_fixed=float(sum(math.prod(structure.tensors[name].shape) for name in constant)),
            layer_terms=self._sizes({layer.weight: coefficients[layer.weight] for layer in layers}),
            layer_in=self._products([self._in(layer) for layer in layers]),
            layer_out=self._products([(1.0, self._axis(layer.weight, self._out_axis(layer))) for layer in layers]),
        )

    def _axes(self) -> tuple[FloatArray, FloatArray]:
        structure = self.structure
        sizes, offsets = structure.sizes, structure.offsets
        fixed = np.ones(len(structure.axes) + 1)
        multiplicity = np.zeros((len(structure.axes) + 1, len(sizes)))
        for row, plan in enumerate(structure.axes, start=1):
            units = plan.units[plan.units >= 0]
            fixed[row] = len(plan.units) - len(units)
            owner = np.searchsorted(offsets, units, side="right") - 1
            multiplicity[row] = np.bincount(owner, minlength=len(sizes)) / sizes
        return fixed, multiplicity

    def _axis(self, tensor: str, axis: int) -> tuple[float, int]:
        """(constant, row): one of them is 1 or 0."""
        row = self.rows.get((tensor, axis), 0)
        return (1.0 if row else float(self.structure.tensors[tensor].shape[axis])), row

    def _sizes(self, coefficients: dict[str, float]) -> Products:
        """Terms coefficient * number of elements, at most two axes of a tensor being planned."""
        factors = []
        for name, coefficient in coefficients.items():
            found = [self._axis(name, axis) for axis in range(len(self.structure.tensors[name].shape))]
            factors.append((coefficient, *found))
        return self._products(factors)

    def _products(self, factors: list[tuple[Any, ...]]) -> Products:
        coefficient, rows = [], []
        for first, *axes in factors:
            coefficient.append(first * math.prod(constant for constant, _ in axes))
            planned = [row for _, row in axes if row]
            assert len(planned) <= 2, "more than two axes of one tensor can be cut"
            rows.append([*planned, 0, 0][:2])
        index = np.array(rows, dtype=np.int64).reshape(-1, 2)
        return Products(np.array(coefficient, dtype=np.float64), index[:, 0], index[:, 1])

    @staticmethod
    def _out_axis(layer: Any) -> int:
        return 1 if layer.kind == "conv_transpose" else 0

    def _in(self, layer: Any) -> tuple[float, tuple[float, int]]:
        if layer.groups > 1 and layer.groups == layer.in_features:
            return layer.in_features / layer.out_features, self._axis(layer.weight, 0)
        return float(layer.groups), self._axis(layer.weight, 1 - self._out_axis(layer))
