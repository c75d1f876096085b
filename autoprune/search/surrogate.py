"""What a recipe will measure, guessed from recipes that were measured: a forest with its cross-validated error.

Extremely randomised trees (Geurts et al., Machine Learning 2006) over the recipe as plain data. They need no scales,
take conditional hyperparameters as they come, and cannot leave the range of what was seen. On 400 recipes of the digits
network they were ahead of a random forest, a Gaussian process and nearest neighbours (docs/search.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoprune.errors import BadInput

Array = NDArray[np.float64]

LEAST = 20
"""Fewer measured recipes than this say nothing."""
NEIGHBOURS = 20
"""How many of the recipes predicted nearest to a value say how far off it may be."""
_TREES, _FOLDS = 100, 5
_ABSENT = -1.0
"""Stands for a number that a recipe does not have; trees split it off, and hyperparameters are hardly ever negative."""


def flat(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the leaves of a recipe by their paths; entries of a list are told apart by their method's name.

    >>> flat({"criterion": {"name": "l1_norm", "power": 1}, "recovery": [{"name": "finetune"}]})
    {'criterion.name': 'l1_norm', 'criterion.power': 1, 'recovery.finetune.name': 'finetune'}
    """
    found: dict[str, Any] = {}
    _flatten(recipe, "", found)
    return found


def _flatten(value: Any, path: str, found: dict[str, Any]) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _flatten(inner, f"{path}.{key}" if path else str(key), found)
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            name = inner.get("name", i) if isinstance(inner, Mapping) else i
            _flatten(inner, f"{path}.{name}", found)
    else:
        found[path] = value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class Encoder:
    """Turns recipes into rows of numbers: a column for every number, one for every other value that was seen."""

    def __init__(self, recipes: Sequence[Mapping[str, Any]]) -> None:
        flats = [flat(recipe) for recipe in recipes]
        leaves = {(path, value if not _is_number(value) else None) for f in flats for path, value in f.items()}
        numbers = {path for f in flats for path, value in f.items() if _is_number(value)}
        self._numbers = sorted(numbers)
        self._values = sorted(((p, v) for p, v in leaves if p not in numbers or v is not None), key=repr)
        self._methods = {(path, value) for path, value in self._values if path.rsplit(".", 1)[-1] == "name"}

    def rows(self, recipes: Sequence[Mapping[str, Any]]) -> Array:
        """Return (recipes, columns)."""
        return np.array([self._row(flat(recipe)) for recipe in recipes])

    def _row(self, leaves: Mapping[str, Any]) -> list[float]:
        numbers = [leaves.get(path) for path in self._numbers]
        row = [float(v) if v is not None and _is_number(v) else _ABSENT for v in numbers]
        return row + [float(path in leaves and leaves[path] == value) for path, value in self._values]

    def unseen(self, recipe: Mapping[str, Any]) -> list[str]:
        """Return the methods of a recipe that none of the known recipes has."""
        named = {(p, v) for p, v in flat(recipe).items() if p.rsplit(".", 1)[-1] == "name"}
        return sorted(f"{path.removesuffix('.name')} {value}" for path, value in named - self._methods)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How well a surrogate predicts recipes that it was not fitted to.

    rmse and median_error are in the value's unit; rank_correlation is Spearman's.
    """

    count: int
    rmse: float
    median_error: float
    rank_correlation: float


class Surrogate:
    """Predicts the columns of a table of values from recipes, and from further numbers about each where given."""

    def __init__(
        self,
        recipes: Sequence[Mapping[str, Any]],
        values_NV: Array,
        *,
        more: Sequence[Mapping[str, float]] | None = None,
        seed: int = 0,
    ) -> None:
        """Fit. `more` are named numbers that were measured about each recipe. Raises BadInput for too few recipes."""
        if len(recipes) < LEAST:
            raise BadInput(
                f"{len(recipes)} measured recipes are too few to predict others; at least {LEAST} are needed"
            )
        self.encoder = Encoder(recipes)
        self._names = sorted({name for row in more or () for name in row})
        self._seed = seed
        rows_NC = self._rows(recipes, more)
        self._values_NV = np.asarray(values_NV, dtype=np.float64)
        # columns of different size share their splits
        self._middle_V = self._values_NV.mean(axis=0)
        self._scale_V = np.where((spread := self._values_NV.std(axis=0)) > 0, spread, 1.0)
        self._guessed_NV = self._guess_held_out(rows_NC)
        self._forest = self._fitted(rows_NC, self._values_NV)

    def predict(self, recipes: Sequence[Mapping[str, Any]], more: Sequence[Mapping[str, float]] | None = None) -> Array:
        """Return (recipes, values)."""
        return self._from(self._forest, self._rows(recipes, more))

    def error(self, column: int, predicted: float) -> float:
        """Return the root mean square error of the recipes that were, unseen, predicted nearest to this value."""
        guessed_N = self._guessed_NV[:, column]
        nearest = np.argsort(np.abs(guessed_N - predicted), kind="stable")[:NEIGHBOURS]
        return float(np.sqrt(np.mean((guessed_N - self._values_NV[:, column])[nearest] ** 2)))

    def fit(self, column: int) -> Fit:
        """Return how well a column was predicted where it was held out."""
        guessed_N, true_N = self._guessed_NV[:, column], self._values_NV[:, column]
        off_N = np.abs(guessed_N - true_N)
        return Fit(
            count=len(true_N),
            rmse=float(np.sqrt(np.mean(off_N**2))),
            median_error=float(np.median(off_N)),
            rank_correlation=_rank_correlation(guessed_N, true_N),
        )

    def _rows(self, recipes: Sequence[Mapping[str, Any]], more: Sequence[Mapping[str, float]] | None) -> Array:
        rows_NC = self.encoder.rows(recipes)
        if more is None:
            return rows_NC
        extra_NM = np.array([[row.get(name, _ABSENT) for name in self._names] for row in more])
        return np.hstack([rows_NC, extra_NM])

    def _guess_held_out(self, rows_NC: Array) -> Array:
        from sklearn.model_selection import KFold

        guessed_NV = np.empty_like(self._values_NV)
        for fitted, held_out in KFold(_FOLDS, shuffle=True, random_state=self._seed).split(rows_NC):
            forest = self._fitted(rows_NC[fitted], self._values_NV[fitted])
            guessed_NV[held_out] = self._from(forest, rows_NC[held_out])
        return guessed_NV

    def _fitted(self, rows_NC: Array, values_NV: Array) -> Any:
        from sklearn.ensemble import ExtraTreesRegressor

        scaled_NV = (values_NV - self._middle_V) / self._scale_V
        wanted = scaled_NV.ravel() if scaled_NV.shape[1] == 1 else scaled_NV
        return ExtraTreesRegressor(_TREES, random_state=self._seed).fit(rows_NC, wanted)

    def _from(self, forest: Any, rows_NC: Array) -> Array:
        scaled_NV = np.asarray(forest.predict(rows_NC)).reshape(len(rows_NC), -1)
        found: Array = scaled_NV * self._scale_V + self._middle_V
        return found


def _rank_correlation(a: Array, b: Array) -> float:
    from scipy.stats import rankdata

    ranks_a, ranks_b = rankdata(a), rankdata(b)
    if np.ptp(ranks_a) == 0 or np.ptp(ranks_b) == 0:
        return 0.0
    return float(np.corrcoef(ranks_a, ranks_b)[0, 1])
