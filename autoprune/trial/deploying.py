"""Accuracy and resources of what is deployed: the int8 file of a recipe that quantises, else the float32 model.

In a study that minimises size, memory or energy these are what trials are compared by; otherwise they are not measured.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from autoprune.cost.resources import FLOAT_BITS, count_resources
from autoprune.data import Split
from autoprune.deployment.quantised import Quantised, measured_on
from autoprune.quantisation import Quantisation
from autoprune.tasks import evaluate
from autoprune.trial.bench import Bench

RESOURCES = ("deployed_bytes", "deployed_activation_bytes", "deployed_energy_uj")
"""Size, the peak of activations of one sample, and the energy proxy of one sample in microjoule."""


def as_deployed(
    metrics: Mapping[str, float],
    model: nn.Module,
    bench: Bench,
    method: Quantisation | None = None,
    base: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Return a model's metrics as those of what is deployed.

    accuracy and loss become those of the int8 file where there is a method; the float model's stay as float_accuracy
    and float_loss. Added are `RESOURCES`, each also as a fraction of the base model's in its metrics `base`, which is
    None for the base model itself. Size is that of the int8 file, or of float32 weights and buffers.
    Raises TraceFailed.
    """
    bits = FLOAT_BITS if method is None else (method.bits, method.activation_bits)
    (counted,) = count_resources(model, bench.data.train.one_sample(bench.device), (bits,))
    size = float(counted.weight_bytes) if method is None else metrics["int8_bytes"]
    found = dict(zip(RESOURCES, (size, float(counted.peak_activation_bytes), counted.energy_proxy_uj), strict=True))
    own = {name: metrics[name if method is None else f"int8_{name}"] for name in ("accuracy", "loss")}
    beside = {f"float_{name}": metrics[name] for name in own}
    whole = found if base is None else base
    return {**metrics, **own, **beside, **found, **{f"{name}_fraction": found[name] / whole[name] for name in found}}


def on_split(model: nn.Module, quantised: Quantised | None, split: Split, bench: Bench) -> dict[str, float]:
    """Return accuracy, loss and count on a split: of the int8 file where it is given, the float model's beside them."""
    size = bench.settings.eval_batch_size
    whole = evaluate(model, split, bench.task, size, device=bench.device)
    found = {"accuracy": whole.accuracy, "loss": whole.loss, "count": float(whole.count)}
    if quantised is None:
        return found
    small = measured_on(quantised, split, bench.task, size)
    own = {name: small[f"int8_{name}"] for name in ("accuracy", "loss")}
    return {**found, **own, "float_accuracy": whole.accuracy, "float_loss": whole.loss}
