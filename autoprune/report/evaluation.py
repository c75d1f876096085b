"""Accuracy and cost of a saved model, on the data it was made with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoprune.errors import BadData, BadInput

if TYPE_CHECKING:
    from autoprune.artefact import Manifest
    from autoprune.data import Data
    from autoprune.tasks import Task

SPLITS = ("validation", "test")


def artefact_data(manifest: Manifest, overrides: Mapping[str, Any], folder: str | Path) -> Data:
    """Build the data that an artefact records. overrides: fields of its data spec, such as root.

    Raises BadInput when it records none, or when it cannot be read.
    """
    from autoprune.artefact import check_reference
    from autoprune.data import build_data

    if manifest.data is None or manifest.data.spec is None:
        raise BadInput(f"{folder} does not record how to build its data; the model was made from a data object")
    check_reference(manifest.data.spec.name, "data set")
    return build_data(manifest.data.spec.model_dump(exclude_unset=True) | dict(overrides))


def artefact_setting(folder: str | Path, overrides: Mapping[str, Any]) -> tuple[Data, Task]:
    """Build the data and the task that an artefact records. Raises as `artefact_data` does."""
    from autoprune.artefact import check_reference, read_manifest
    from autoprune.tasks import build_task

    manifest = read_manifest(folder)
    data = artefact_data(manifest, overrides, folder)
    for reference in (manifest.task.loss, manifest.task.metric):
        check_reference(reference or "", "task")
    return data, build_task(manifest.task)


def evaluate_artefact(
    folder: str | Path,
    splits: tuple[str, ...] = SPLITS,
    *,
    samples: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    device: str = "auto",
    batch_size: int = 512,
    latency: bool = False,
    certify_at: float | None = None,
) -> dict[str, Any]:
    """Load an artefact and measure it: accuracy, loss and count by split, FLOPs and parameters.

    samples: at most that many of each split, the same every time. latency: also time one forward pass of a batch of
    one. certify_at: also certify 200 samples of the last split at this epsilon. A split that the data lacks is None.
    Dynamic FLOPs are of the last split measured.
    Raises BadInput, WrongArtefact, BadData, NotApplicable for a network that cannot be certified.
    """
    from autoprune import artefact
    from autoprune.certified.verify import certify
    from autoprune.cost import count_flops, count_params, count_sparse_flops, latency_ms, sparsity_of
    from autoprune.dynamic import dynamic_cost, tallied
    from autoprune.settings import TrialSettings
    from autoprune.tasks import evaluate

    manifest = artefact.read_manifest(folder)
    model = artefact.load(folder)
    data, task = artefact_setting(folder, overrides or {})
    place = TrialSettings(device=device).torch_device()
    one = data.validation.one_sample(place)
    flops, dynamic = count_flops(model.to(place), one), None
    found: dict[str, Any] = {}
    for name in splits:
        split = getattr(data, name)
        if split is None and len(splits) == 1:
            raise BadData(f"data {data.name!r} has no {name} split")
        with tallied(model) as tallies:
            measured = None if split is None else evaluate(model, split, task, batch_size, limit=samples, device=place)
        dynamic = dynamic_cost(tallies, flops) or dynamic
        found[name] = measured and {
            "accuracy": measured.accuracy,
            "loss": measured.loss,
            "count": measured.count,
        }
    found |= {"flops": flops, "params": count_params(model)}
    found |= {"sparse_flops": count_sparse_flops(model, one, flops), "sparsity": sparsity_of(model)}
    if dynamic is not None:
        found |= dynamic.metrics
    if latency:
        found["latency_ms"] = latency_ms(model, one)
    if certify_at is not None:
        last = next(name for name in reversed(splits) if found[name] is not None)
        proven = certify(model, getattr(data, last), data.pixels, certify_at)
        found["certified"] = {"split": last, **asdict(proven)}
    return found | {
        "metric": manifest.task.metric_name,
        "recorded": dict(manifest.metrics),
        "same_data": data.fingerprint == manifest.data.fingerprint if manifest.data else None,
    }
