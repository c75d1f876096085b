"""What a compressed model is worth and costs."""

from __future__ import annotations

import time
from dataclasses import dataclass

from torch import nn

from autoprune.cost import count_flops, count_params, count_sparse_flops, sparsity_of
from autoprune.dynamic import DynamicCost, dynamic_cost, tallied
from autoprune.tasks import evaluate
from autoprune.trial.bench import Bench, Cost


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a model is worth and costs. Accuracy in 0..1; FLOPs (2 x MACs) of one sample, counted on the model.

    `flops` are those of dense kernels, `sparse_flops` what is left of them when no product with a zero weight is
    computed. `sparsity` is the share of zeros among the weights of convolutions and linear layers. `dynamic_flops` are
    what layers whose cost depends on their input took on the evaluated samples, a mean, overhead included; those of
    dense kernels for a model without such layers.
    """

    accuracy: float
    loss: float
    count: int
    flops: int
    params: int
    flops_fraction: float
    params_fraction: float
    sparse_flops: int
    sparse_flops_fraction: float
    sparsity: float
    dynamic_flops: float
    dynamic_flops_fraction: float
    dynamic: DynamicCost | None
    cost: Cost


def metrics_of(measured: Measurement) -> dict[str, float]:
    """Return a measurement as plain numbers, as records and artefacts keep them."""
    names = (
        "accuracy",
        "loss",
        "count",
        "flops",
        "params",
        "flops_fraction",
        "params_fraction",
        "sparse_flops",
        "sparse_flops_fraction",
        "sparsity",
        "dynamic_flops",
        "dynamic_flops_fraction",
    )
    found = {name: float(getattr(measured, name)) for name in names}
    return found | (measured.dynamic.metrics if measured.dynamic is not None else {})


def measure(model: nn.Module, bench: Bench, samples: int | None = None) -> Measurement:
    """Evaluate on the validation split, or on the same `samples` of it every time, and count the cost."""
    began = time.perf_counter()
    with tallied(model) as tallies:
        found = evaluate(model, bench.data.validation, bench.task, bench.settings.eval_batch_size, limit=samples)
    forward_seconds = time.perf_counter() - began
    inputs = bench.data.train.one_sample(bench.device)
    flops, params = count_flops(model, inputs), count_params(model)
    sparse_flops = count_sparse_flops(model, inputs, flops)
    dynamic = dynamic_cost(tallies, flops)
    dynamic_flops = float(flops) if dynamic is None else dynamic.mean
    return Measurement(
        accuracy=found.accuracy,
        loss=found.loss,
        count=found.count,
        flops=flops,
        params=params,
        flops_fraction=flops / bench.base.flops,
        params_fraction=params / bench.base.params,
        sparse_flops=sparse_flops,
        sparse_flops_fraction=sparse_flops / bench.base.flops,
        sparsity=sparsity_of(model),
        dynamic_flops=dynamic_flops,
        dynamic_flops_fraction=dynamic_flops / bench.base.flops,
        dynamic=dynamic,
        cost=Cost(
            forward_samples=found.count,
            seconds=time.perf_counter() - began,
            forward_seconds=forward_seconds,
        ),
    )
