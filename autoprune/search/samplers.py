"""Optuna's samplers by name, for several objectives and small budgets."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from autoprune.errors import unknown_name
from autoprune.seeds import derive_seed

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


def build_sampler(name: str, *, seed: int, finished: int, budget: int, startup: int | None = None) -> BaseSampler:
    """Return the sampler of that name. Raises UnknownName.

    The random stream derives from the study's seed and the number of trials that are finished, so that a resumed
    study does not draw again what it drew before. startup: random trials before the model; by default a fifth of the
    budget, 4 to 10.
    """
    if name not in _BY_NAME:
        raise unknown_name("sampler", name, _BY_NAME)
    first = min(10, max(4, budget // 5)) if startup is None else startup
    stream = derive_seed(seed, "sampler", finished) % 2**32
    with warnings.catch_warnings():
        # Optuna marks `group` and others as experimental, at every construction
        warnings.simplefilter("ignore")
        sampler: BaseSampler = _BY_NAME[name](stream, first, budget)
    return sampler


def _tpe(seed: int, startup: int, budget: int) -> BaseSampler:
    from autoprune.search.tpe import RememberingTPE

    # group: conditional dimensions that appear together are modelled together. constant_liar: running trials count as
    # bad, so that parallel workers spread out.
    return RememberingTPE(
        seed=seed,
        n_startup_trials=startup,
        multivariate=True,
        group=True,
        constant_liar=True,
        warn_independent_sampling=False,
    )


def _nsga2(seed: int, startup: int, budget: int) -> BaseSampler:
    from optuna.samplers import NSGAIISampler

    # Optuna's population of 50 would be random search for most budgets
    return NSGAIISampler(seed=seed, population_size=min(50, max(4, budget // 4)))


def _gp(seed: int, startup: int, budget: int) -> BaseSampler:
    from optuna.samplers import GPSampler

    options: dict[str, Any] = {}
    if "warn_independent_sampling" in inspect.signature(GPSampler).parameters:
        options["warn_independent_sampling"] = False
    return GPSampler(seed=seed, n_startup_trials=max(1, startup), **options)


def _random(seed: int, startup: int, budget: int) -> BaseSampler:
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=seed)


_BY_NAME: dict[str, Callable[[int, int, int], Any]] = {
    "gp": _gp,
    "nsga2": _nsga2,
    "random": _random,
    "tpe": _tpe,
}
