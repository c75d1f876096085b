"""Closed-form cost: every axis length is fixed + sum over groups of multiplicity * kept units.

The units of a group live in the same places, so the length of an axis depends on how many units are kept
and not on which. Where heads meet dimensions the length has products of two kept counts. FLOPs and parameters
are sums of coefficient * product of lengths.
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
    """T terms coefficients (T,) * product of lengths[rows (T, R)], over lengths whose entry 0 is 1."""

    coefficients: FloatArray
    rows: IntArray

    def each(self, lengths: FloatArray) -> FloatArray:
        """(T,) value of each term."""
        result: FloatArray = self.coefficients * lengths[self.rows].prod(axis=1)
        return result


@dataclass(frozen=True, eq=False)
class Grids:
    """Parts of lengths that are products of counts: axis (P,), multiplicity (P,), groups (P, R) into counts with
    a one appended."""

    axis: IntArray
    multiplicity: FloatArray
    groups: IntArray


@dataclass(frozen=True, eq=False)
class CostTable:
    """Lengths of A axes from counts of G groups, and the products that cost is made of."""

    fixed: FloatArray
    multiplicity: FloatArray
    grids: Grids
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
        if len(self.grids.axis):
            padded = np.append(np.asarray(counts, dtype=np.float64), 1.0)
            np.add.at(result, self.grids.axis, self.grids.multiplicity * padded[self.grids.groups].prod(axis=1))
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
        self.rows = {key: i + 1 for i, key in enumerate(structure.plans_by_axis)}

    def table(self) -> CostTable:
        structure = self.structure
        fixed, multiplicity, grids = self._axes()
        parameters = [name for name, tensor in structure.tensors.items() if tensor.is_parameter]
        planned = {name for name, _ in self.rows}
        constant = [name for name in parameters if name not in planned]
        coefficients = {term.weight: term.coefficient for term in structure.terms}
        layers = structure.layers
        return CostTable(
            fixed=fixed,
            multiplicity=multiplicity,
            grids=grids,
            flops_terms=self._products([*self._elements(coefficients), *self._activations()]),
            flops_fixed=structure.flops_fixed,
            params_terms=self._sizes({name: 1.0 for name in parameters if name in planned}),
            params_fixed=float(sum(math.prod(structure.tensors[name].shape) for name in constant)),
            layer_terms=self._sizes({layer.weight: coefficients[layer.weight] for layer in layers}),
            layer_in=self._products([self._in(layer) for layer in layers]),
            layer_out=self._products([(1.0, self._axis(layer.weight, self._out_axis(layer))) for layer in layers]),
        )

    def _axes(self) -> tuple[FloatArray, FloatArray, Grids]:
        structure = self.structure
        sizes, offsets = structure.sizes, structure.offsets
        fixed = np.ones(len(self.rows) + 1)
        multiplicity = np.zeros((len(self.rows) + 1, len(sizes)))
        grids: list[tuple[int, float, list[int]]] = []
        for row, plans in enumerate(structure.plans_by_axis.values(), start=1):
            table = np.stack([plan.units for plan in plans], axis=1)
            owners = np.where(table < 0, -1, np.searchsorted(offsets, table, side="right") - 1)
            cells, counts = np.unique(owners, axis=0, return_counts=True)
            fixed[row] = 0
            for cell, count in zip(cells.tolist(), counts.tolist(), strict=True):
                groups = [group for group in cell if group >= 0]
                if not groups:
                    fixed[row] += count
                elif len(groups) == 1:
                    multiplicity[row, groups[0]] += count / sizes[groups[0]]
                else:
                    grids.append((row, count / float(np.prod(sizes[groups])), groups))
        width = max((len(groups) for *_, groups in grids), default=1)
        padded = [groups + [len(sizes)] * (width - len(groups)) for *_, groups in grids]
        return (
            fixed,
            multiplicity,
            Grids(
                np.array([row for row, *_ in grids], dtype=np.int64),
                np.array([count for _, count, _ in grids], dtype=np.float64),
                np.array(padded, dtype=np.int64).reshape(-1, width),
            ),
        )

    def _axis(self, tensor: str, axis: int) -> tuple[float, int]:
        """(constant, row): one of them is 1 or 0."""
        row = self.rows.get((tensor, axis), 0)
        return (1.0 if row else float(self.structure.tensors[tensor].shape[axis])), row

    def _sizes(self, coefficients: dict[str, float]) -> Products:
        """Terms coefficient * number of elements."""
        return self._products(self._elements(coefficients))

    def _elements(self, coefficients: dict[str, float]) -> list[tuple[Any, ...]]:
        shapes = {name: self.structure.tensors[name].shape for name in coefficients}
        return [
            (coefficient, *(self._axis(name, axis) for axis in range(len(shapes[name]))))
            for name, coefficient in coefficients.items()
        ]

    def _activations(self) -> list[tuple[Any, ...]]:
        found = []
        for item in self.structure.products:
            rows = [(self.rows.get((name, 0), 0), length) for name, length in item.axes]
            found.append((item.coefficient, *((1.0 if row else float(length), row) for row, length in rows)))
        return found

    def _products(self, factors: list[tuple[Any, ...]]) -> Products:
        coefficient, rows = [], []
        for first, *axes in factors:
            coefficient.append(first * math.prod(constant for constant, _ in axes))
            rows.append([row for _, row in axes if row])
        width = max((len(row) for row in rows), default=1) or 1
        index = np.array([row + [0] * (width - len(row)) for row in rows], dtype=np.int64).reshape(-1, width)
        return Products(np.array(coefficient, dtype=np.float64), index)

    @staticmethod
    def _out_axis(layer: Any) -> int:
        return 1 if layer.kind == "conv_transpose" else 0

    def _in(self, layer: Any) -> tuple[float, tuple[float, int]]:
        if layer.groups > 1 and layer.groups == layer.in_features:
            return layer.in_features / layer.out_features, self._axis(layer.weight, 0)
        return float(layer.groups), self._axis(layer.weight, 1 - self._out_axis(layer))
