from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoprune.data import Data, TensorSplit
from autoprune.errors import BadData, BadInput
from autoprune.tasks import build_task, check_fits, classification, evaluate, forward, logits_of

LOGITS = torch.tensor([[2.0, 0.0], [0.0, 3.0]])


class Fixed(nn.Module):
    """Returns its input and notes the mode it was called in."""

    modes: list[bool]

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Dropout(0.5)
        self.modes = []

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append(self.inner.training)
        return x


def data(num_classes: int | None = 2, labels: tuple[int, ...] = (0, 1)) -> Data:
    train = TensorSplit(torch.zeros(2, 3), torch.tensor([0, 1]))
    other = TensorSplit(torch.zeros(len(labels), 3), torch.tensor(labels))
    return Data(train, other, other, "toy", num_classes, "")


@pytest.mark.parametrize(
    "output",
    [LOGITS, (LOGITS, None), [LOGITS], {"logits": LOGITS}, {"out": LOGITS}, SimpleNamespace(logits=LOGITS)],
)
def test_logits_are_found_in_usual_outputs(output: Any) -> None:
    assert logits_of(output) is LOGITS


@pytest.mark.parametrize("output", [{"boxes": LOGITS}, (), "text", SimpleNamespace()])
def test_an_output_without_logits_is_told(output: Any) -> None:
    with pytest.raises(BadData, match="no logits in the model's output"):
        logits_of(output)


def test_forward_takes_tensor_tuple_and_dict() -> None:
    class Sum(nn.Module):
        def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
            return a if b is None else a + b

    one = torch.ones(1)
    assert forward(Sum(), one) == 1
    assert forward(Sum(), (one, one)) == 2
    assert forward(Sum(), {"b": one, "a": one}) == 2


def test_evaluate_averages_over_samples_not_batches() -> None:
    inputs = torch.tensor([[5.0, 0.0], [0.0, 5.0], [5.0, 0.0]])
    split = TensorSplit(inputs, torch.tensor([0, 1, 1]))
    found = evaluate(Fixed(), split, classification(), batch_size=2)
    right, wrong = torch.tensor(-5.0).exp().log1p().item(), torch.tensor(5.0).exp().log1p().item()
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.loss == pytest.approx((2 * right + wrong) / 3, rel=1e-5)
    assert found.count == 3
    assert evaluate(Fixed(), split, classification(), limit=2).count == 2


def test_evaluate_runs_in_eval_mode_and_restores_each_mode() -> None:
    model = Fixed().train()
    model.inner.eval()
    evaluate(model, TensorSplit(LOGITS, torch.tensor([0, 1])), classification())
    assert model.modes == [False]
    assert model.training
    assert not model.inner.training


def test_evaluate_restores_the_mode_after_an_error() -> None:
    model = nn.Linear(3, 2).train()
    with pytest.raises(RuntimeError):
        evaluate(model, TensorSplit(LOGITS, torch.tensor([0, 1])), classification())
    assert model.training


def test_evaluate_of_nothing_is_an_error() -> None:
    with pytest.raises(BadData, match="nothing to evaluate"):
        evaluate(Fixed(), TensorSplit(LOGITS[:0], torch.tensor([], dtype=torch.int64)), classification())


def test_segmentation_counts_pixels_and_leaves_out_ignored_ones() -> None:
    logits = torch.zeros(1, 2, 2, 2)
    logits[:, 1] = 1.0
    score, count = classification().metric({"out": logits}, torch.tensor([[[1, 1], [0, -100]]]))
    assert (int(score), int(count)) == (2, 3)


def test_check_fits_accepts_what_fits() -> None:
    check_fits(nn.Linear(3, 2), data(), classification())
    check_fits(nn.Linear(3, 2), data(num_classes=None), classification())


def test_another_number_of_classes_is_told_with_both_numbers() -> None:
    with pytest.raises(BadData, match="the model gives 5 logits, data 'toy' has 2 classes"):
        check_fits(nn.Linear(3, 5), data(), classification())


@pytest.mark.parametrize("labels", [(0, 2), (-1, 1)])
def test_labels_outside_the_range_are_told(labels: tuple[int, ...]) -> None:
    low, high = labels
    with pytest.raises(BadData, match=rf"validation split of data 'toy' has labels from {low} to {high}.*0\.\.1"):
        check_fits(nn.Linear(3, 2), data(labels=labels), classification())


def test_inputs_the_model_cannot_take_are_told_with_their_shape() -> None:
    with pytest.raises(BadData, match=r"cannot take the inputs of data 'toy' \(\(2, 3\) float32\): RuntimeError"):
        check_fits(nn.Linear(4, 2), data(), classification())


def test_smoothing_changes_the_loss_of_a_classification_only(tmp_path: Path) -> None:
    task, targets = classification(), torch.tensor([0, 1])
    assert task.smoothed(0.0) is task
    assert task.smoothed(0.2).loss(LOGITS, targets) > task.loss(LOGITS, targets)
    own = build_task({"loss": "torch.nn.functional:mse_loss", "metric": "torch.nn.functional:l1_loss"})
    with pytest.raises(BadInput, match="label_smoothing works for classification only"):
        own.smoothed(0.1)


def test_a_task_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_task.py").write_text(
        "def loss(output, targets):\n    return (output - targets).square().mean()\n"
        "def metric(output, targets):\n    return -(output - targets).abs().sum(), len(targets)\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    task = build_task({"loss": "my_task:loss", "metric": "my_task:metric", "metric_name": "minus_error"})
    split = TensorSplit(torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [4.0]]))
    found = evaluate(Fixed(), split, task)
    assert (found.loss, found.accuracy, task.metric_name) == (2.5, -1.5, "minus_error")
    check_fits(nn.Linear(3, 5), data(), task)
