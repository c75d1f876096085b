"""What a model is for: calling it, its loss, its metric, and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from autoprune import imports
from autoprune.data.split import Data, Split, map_tensors
from autoprune.errors import AutopruneError, BadData, BadInput
from autoprune.specs import TaskSpec, as_spec

Loss = Callable[[Any, Any], Tensor]
Metric = Callable[[Any, Any], tuple[Any, Any]]

_IGNORED = -100  # the target that torch's cross entropy leaves out


@dataclass(frozen=True)
class Task:
    """Loss and metric of a model's output.

    loss(output, targets) -> scalar, the mean over samples.
    metric(output, targets) -> (sum of scores, how many), numbers or 0-d tensors; more is better.
    classification: the output holds one logit per class.
    """

    loss: Loss
    metric: Metric
    metric_name: str = "accuracy"
    classification: bool = False

    def smoothed(self, label_smoothing: float) -> Task:
        """Return the task with label smoothing in its loss. Raises BadInput unless it is a classification."""
        if label_smoothing == 0.0:
            return self
        if not self.classification:
            raise BadInput("label_smoothing works for classification only; put it into the task's own loss.")
        return replace(self, loss=lambda o, t: cross_entropy(logits_of(o), t, label_smoothing=label_smoothing))


@dataclass(frozen=True)
class Evaluation:
    """How good a model is: mean loss and mean metric (accuracy in 0..1) over `count` samples."""

    loss: float
    accuracy: float
    count: int


def build_task(spec: TaskSpec | Mapping[str, Any] | None = None) -> Task:
    """Build the task of a spec; classification when it names no functions. Raises BadInput (UnknownName)."""
    spec = as_spec(TaskSpec, spec if spec is not None else {}, "task")
    if spec.loss is None or spec.metric is None:
        return replace(classification(), metric_name=spec.metric_name)
    loss, metric = imports.resolve(spec.loss, "task.loss"), imports.resolve(spec.metric, "task.metric")
    return Task(loss=loss, metric=metric, metric_name=spec.metric_name)


def classification() -> Task:
    """Return the default task: cross entropy and accuracy of the logits, for classes on axis 1."""
    return Task(loss=_cross_entropy, metric=_correct, classification=True)


def _cross_entropy(output: Any, targets: Tensor) -> Tensor:
    return cross_entropy(logits_of(output), targets)


def _correct(output: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
    hits = logits_of(output).argmax(dim=1) == targets
    return hits.sum(), (targets != _IGNORED).sum()


def logits_of(output: Any) -> Tensor:
    """Return the logits in an output: a tensor, the first of a tuple, "logits" or "out" of a mapping, .logits

    Raises BadData for anything else.
    """
    found = output
    if isinstance(output, tuple | list) and output and not hasattr(output, "logits"):
        found = output[0]
    elif isinstance(output, Mapping):
        found = output.get("logits", output.get("out"))
    elif not isinstance(output, Tensor):
        found = getattr(output, "logits", None)
    if not isinstance(found, Tensor):
        keys = f" with keys {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
        raise BadData(
            f"no logits in the model's output, a {type(output).__name__}{keys}. Allowed: a tensor, a "
            "tuple beginning with one, a mapping with 'logits' or 'out', an object with .logits; or give the "
            "task a loss and a metric of its own."
        )
    return found


def forward(model: nn.Module, inputs: Any) -> Any:
    """Call a model: a tuple gives positional, a dict keyword arguments."""
    if isinstance(inputs, tuple):
        return model(*inputs)
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(inputs)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the first parameter or buffer; the CPU for a model without any."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode for a while, then give every module back the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def evaluate(
    model: nn.Module,
    split: Split,
    task: Task,
    batch_size: int = 256,
    limit: int | None = None,
    device: torch.device | str | None = None,
) -> Evaluation:
    """Evaluate on a split, or on the same `limit` samples of it each time (see `Split.batches`).

    device: moves the model and takes the batches; None leaves the model where it is. The modes of its modules
    stay as they were. Raises BadData for an empty split.
    """
    if device is not None:
        model.to(device)
    target_device = device_of(model)
    losses, scores, counts, samples = 0.0, 0.0, 0, 0
    with eval_mode(model), torch.inference_mode():
        for inputs, targets in split.batches(batch_size, limit=limit, device=target_device):
            output = forward(model, inputs)
            score, count = task.metric(output, targets)
            size = batch_length(targets)
            losses += float(task.loss(output, targets)) * size
            scores, counts, samples = scores + float(score), counts + int(count), samples + size
    if samples == 0 or counts == 0:
        raise BadData("there is nothing to evaluate: the split is empty or the metric counted no sample.")
    return Evaluation(loss=losses / samples, accuracy=scores / counts, count=samples)


def batch_length(targets: Any) -> int:
    """Return how many samples the targets of a batch are for."""
    sizes: list[int] = []
    map_tensors(targets, lambda t: sizes.append(len(t) if t.ndim else 1))
    return sizes[0] if sizes else len(targets)


def check_fits(model: nn.Module, data: Data, task: Task) -> None:
    """Check that the model takes the data's inputs, and has a logit for each of its classes.

    Raises BadData with the shapes, numbers of classes or labels that do not fit.
    """
    inputs, targets = next(data.train.batches(2, device=device_of(model)))
    with eval_mode(model), torch.inference_mode():
        try:
            output = forward(model, inputs)
        except (AutopruneError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise BadData(
                f"the model cannot take the inputs of data {data.name!r} ({_shapes(inputs)}): "
                f"{type(error).__name__}: {error}"
            ) from error
    if task.classification:
        _check_classes(logits_of(output), data, targets)


def _check_classes(logits: Tensor, data: Data, targets: Any) -> None:
    width = logits.shape[1] if logits.ndim > 1 else 0
    if data.num_classes is not None and width != data.num_classes:
        raise BadData(
            f"the model gives {width} logits, data {data.name!r} has {data.num_classes} classes. "
            "Set model.arguments.num_classes, or use weights and data of the same classes."
        )
    for where, split in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        labels = None if split is None else split.labels()
        labels = targets if labels is None and where == "train" else labels
        if isinstance(labels, Tensor) and not labels.is_floating_point() and labels.numel():
            _check_range(labels[labels != _IGNORED], width, f"{where} split of data {data.name!r}")


def _check_range(labels: Tensor, width: int, where: str) -> None:
    if labels.numel() == 0:
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= width:
        raise BadData(f"the {where} has labels from {low} to {high}; for {width} logits they must be 0..{width - 1}.")


def _shapes(inputs: Any) -> str:
    shapes: list[str] = []
    map_tensors(inputs, lambda t: shapes.append(f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}"))
    return ", ".join(shapes)
