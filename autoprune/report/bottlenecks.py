"""Which layers a criterion hardly takes from, and studies of the model with those layers widened.

SOSP, Nonnenmacher et al., ICLR 2022, arXiv 2110.11395: at a reference share of removed units, one global ranking says
how much goes from every group. Groups that lose clearly less than the average are bottlenecks. The paper's claim is
that a model with those widened, trained anew and cut back to a size is better than the old one cut to that size. The
control is a model all of whose groups are a little wider. That "clearly" is half of the average is ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from autoprune.errors import BadInput
from autoprune.files import write_text

if TYPE_CHECKING:
    from torch import Tensor

    from autoprune.base import Base
    from autoprune.graph import Structure
    from autoprune.report.single import Say
    from autoprune.study.config import StudyConfig

LEAST_KEPT = 0.05
_BUILD = "autoprune.widening:build"


@dataclass(frozen=True, kw_only=True)
class GroupShare:
    """What one global ranking takes from a group."""

    group: str
    size: int
    removed: int
    bottleneck: bool

    @property
    def removed_fraction(self) -> float:
        return self.removed / self.size


@dataclass(frozen=True, kw_only=True)
class Found:
    """A study's base model with the shares of its groups. shape: of one sample, () where it is no single tensor."""

    config: StudyConfig
    base: Base
    shares: tuple[GroupShare, ...]
    shape: tuple[int, ...]
    num_classes: int | None


def shares(
    structure: Structure, scores: Mapping[str, Tensor], removed_fraction: float, threshold: float
) -> tuple[GroupShare, ...]:
    """Return what goes from every scored group when so many of all their units go, lowest scores first.

    At least max(1, 5 %) of a group stay. A bottleneck loses less than `threshold` times the share that goes in all.
    Raises BadInput for fractions outside (0, 1).
    """
    for name, value in (("removed_fraction", removed_fraction), ("threshold", threshold)):
        if not 0 < value < 1:
            raise BadInput(f"{name} must lie between 0 and 1, got {value:g}")
    scored = [g for g in structure.groups if g.name in scores]
    owner_U = np.repeat(np.arange(len(scored)), [g.size for g in scored])
    score_U = np.concatenate([scores[g.name].detach().cpu().double().numpy() for g in scored])
    left = [g.size - max(1, math.ceil(LEAST_KEPT * g.size)) for g in scored]
    wanted = min(math.floor(removed_fraction * len(owner_U) + 1e-9), sum(left))
    removed = [0] * len(scored)
    for owner in owner_U[np.argsort(score_U, kind="stable")].tolist():
        if sum(removed) == wanted:
            break
        removed[owner] += removed[owner] < left[owner]
    limit = threshold * wanted / len(owner_U)
    return tuple(
        GroupShare(group=g.name, size=g.size, removed=gone, bottleneck=gone / g.size < limit)
        for g, gone in zip(scored, removed, strict=True)
    )


def find(
    study: str, criterion: str, removed_fraction: float, threshold: float, overrides: Mapping[str, Any], say: Say
) -> Found:
    """Return what a criterion takes from each group of a study's base model.

    The base model is prepared as `autoprune compress` does. Raises BadInput of all kinds.
    """
    from autoprune.recipe import Recipe
    from autoprune.report.single import prepared
    from autoprune.study.config import load
    from autoprune.study.run_folder import self_contained
    from autoprune.study.worker import load_bench
    from autoprune.trial.choosing import scores_of

    recipe = Recipe.parse({"criterion": criterion, "normalisation": "none"}, "--criterion")
    config = self_contained(load(study, overrides).config)
    with prepared(config, say, recipe) as run:
        bench = load_bench(run)
        say(f"scoring with {criterion}")
        scores = scores_of(recipe, bench.base.structure, bench.evidence, {})
        found = shares(bench.base.structure, scores, removed_fraction, threshold)
        shape = tuple(getattr(bench.data.example_inputs, "shape", ()))[1:]
        return Found(config=config, base=bench.base, shares=found, shape=shape, num_classes=bench.data.num_classes)


def widened_studies(found: Found, folder: Path, *, factor: float, uniform: float) -> dict[str, Path]:
    """Write a study with the bottlenecks widened and one with all groups, and return their files.

    Targets are those of the study in FLOPs and parameters, as fractions of the wider models. The wider models are
    trained by the study's `train_base`. Raises BadInput without a bottleneck, or for inputs that are no single tensor.
    """
    if not found.shape:
        raise BadInput("only models that take one tensor can be widened")
    narrow = [share.group for share in found.shares if share.bottleneck]
    if not narrow:
        raise BadInput("no group is a bottleneck at this threshold; raise --threshold, or --removed-fraction")
    kinds = {
        "widened": dict.fromkeys(narrow, factor),
        "uniform": dict.fromkeys((share.group for share in found.shares), uniform),
    }
    made = {}
    for kind, factors in kinds.items():
        name = f"{found.config.name}-{kind}"
        plain = _study(found, name, factors)
        made[kind] = folder / f"{name}.yaml"
        write_text(made[kind], yaml.safe_dump(plain, sort_keys=False))
    return made


def _study(found: Found, name: str, factors: Mapping[str, float]) -> dict[str, Any]:
    from autoprune.models import known_models
    from autoprune.widening import widened_sizes

    config, base = found.config, found.base
    if any(target.latency_fraction is not None for target in config.targets):
        raise BadInput("bottlenecks keeps a study's FLOPs and parameters; it cannot keep a target of latency")
    sizes_G = widened_sizes(base.structure, factors)
    flops, params = base.structure.total_flops(sizes_G), base.structure.total_params(sizes_G)
    scales = {"flops_fraction": base.flops / flops, "params_fraction": base.params / params}
    model = config.model.model_dump(mode="json", exclude={"weights"})
    if found.num_classes is not None and config.model.name in known_models():
        model["arguments"] = {"num_classes": found.num_classes} | model["arguments"]
    arguments = {"model": model, "factors": dict(factors), "shape": list(found.shape)}
    targets = [
        {key: None if value is None else value * scales[key] for key, value in target if key in scales}
        for target in config.targets
    ]
    plain = config.plain() | {"name": name, "model": {"name": _BUILD, "arguments": arguments}, "targets": targets}
    # recipes that an earlier run found belong to the narrower model
    named = [] if isinstance(config.warm_start, str) else [one for one in config.warm_start if isinstance(one, str)]
    return plain | {"warm_start": named}
