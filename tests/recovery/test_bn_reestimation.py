from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from autoprune.data import TensorSplit
from autoprune.errors import BadData
from autoprune.recovery import RecoveryCost
from autoprune.recovery.bn_reestimation import BnReestimation, _calibration_batches


def test_one_batch_gives_the_statistics_of_the_samples(make_context: Any) -> None:
    # channel 0: 1, 3, 5, 7 has mean 4 and variance (9 + 1 + 1 + 9) / 3; channel 1 is constant
    inputs = torch.tensor([[1.0, 2.0], [3.0, 2.0], [5.0, 2.0], [7.0, 2.0]], dtype=torch.float64)
    norm = nn.BatchNorm1d(2).double()
    norm.running_mean.fill_(100.0)  # type: ignore[union-attr]
    cost = BnReestimation().recover(norm, make_context(inputs), 0.0)
    assert norm.running_mean.tolist() == [4.0, 2.0]  # type: ignore[union-attr]
    assert norm.running_var.tolist() == pytest.approx([20 / 3, 0.0])  # type: ignore[union-attr]
    assert cost == RecoveryCost(forward_samples=4)


def test_several_batches_are_averaged_with_equal_weights(make_context: Any) -> None:
    inputs = torch.tensor([[0.0], [2.0], [10.0], [30.0]])
    norm = nn.BatchNorm1d(1)
    BnReestimation(samples=4, batch_size=2).recover(norm, make_context(inputs), 0.0)
    pairs = [inputs[i] for i in _calibration_batches(TensorSplit(inputs, torch.arange(4)), 4, 2)]
    assert [len(p) for p in pairs] == [2, 2]
    assert float(norm.running_mean) == pytest.approx(10.5)  # type: ignore[arg-type]
    expected = sum((float(p[0]) - float(p[1])) ** 2 / 2 for p in pairs) / 2
    assert float(norm.running_var) == pytest.approx(expected)  # type: ignore[arg-type]


def test_deeper_norms_see_inputs_normalised_by_the_batch(make_context: Any) -> None:
    inputs = torch.tensor([[-1.0], [3.0]], dtype=torch.float64)
    first, second = nn.BatchNorm1d(1, eps=1e-12), nn.BatchNorm1d(1)
    model = nn.Sequential(first, second).double()
    BnReestimation().recover(model, make_context(inputs), 0.0)
    assert float(second.running_mean) == pytest.approx(0.0)  # type: ignore[arg-type]
    assert float(second.running_var) == pytest.approx(2.0)  # type: ignore[arg-type]  # of -1 and 1


@pytest.mark.parametrize(
    ("samples", "batch_size", "sizes"),
    [
        (9, 4, [3, 3, 3]),
        (5, 4, [3, 2]),
        (3, 2, [3]),
        (2, 2, [2]),
        (100, 64, [10]),
    ],
)
def test_batches_are_even_and_never_of_one_sample(samples: int, batch_size: int, sizes: list[int]) -> None:
    split = TensorSplit(torch.zeros(10, 1), torch.zeros(10))
    assert [len(b) for b in _calibration_batches(split, samples, batch_size)] == sizes


def test_more_samples_extend_the_subset_of_fewer() -> None:
    split = TensorSplit(torch.zeros(1000, 1), torch.zeros(1000))
    few, many = (torch.cat(_calibration_batches(split, n, 16)).tolist() for n in (50, 90))
    assert many[:50] == few
    assert len(set(many)) == 90


def test_a_single_training_sample_is_too_few(make_context: Any) -> None:
    with pytest.raises(BadData, match="at least 2 training samples, the split has 1"):
        BnReestimation().recover(nn.BatchNorm1d(1), make_context(torch.zeros(1, 1)), 0.0)


def test_weights_and_momentum_stay(network: Any, make_context: Any) -> None:
    model = network()
    model[1].momentum = 0.03
    before = copy.deepcopy(dict(model.named_parameters()))
    BnReestimation().recover(model, make_context(), 0.0)
    assert model[1].momentum == 0.03
    assert all(torch.equal(p, before[k]) for k, p in model.named_parameters())


def test_dropout_stays_off(network: Any, make_context: Any) -> None:
    def estimated(dropout: float) -> Any:
        model = nn.Sequential(nn.Dropout(dropout), *network(dropout=dropout))
        BnReestimation().recover(model, make_context(), 0.0)
        return model.state_dict()["2.running_var"]

    assert torch.equal(estimated(0.9), estimated(0.0))


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d(2), (4, 2)),
        (nn.BatchNorm1d(2), (4, 2, 5)),
        (nn.BatchNorm2d(2), (4, 2, 3, 3)),
        (nn.BatchNorm3d(2), (4, 2, 2, 2, 2)),
        (nn.SyncBatchNorm(2), (4, 2, 3, 3)),
    ],
)
def test_every_kind_of_batch_norm(norm: nn.Module, shape: tuple[int, ...], make_context: Any) -> None:
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    BnReestimation().recover(norm, make_context(inputs), 0.0)
    others = [a for a in range(len(shape)) if a != 1]
    torch.testing.assert_close(norm.running_mean, inputs.mean(dim=others))
    torch.testing.assert_close(norm.running_var, inputs.var(dim=others))


def test_norms_without_statistics_of_batches_are_left_alone(make_context: Any) -> None:
    inputs = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(
        nn.BatchNorm2d(2, track_running_stats=False),
        nn.InstanceNorm2d(2, track_running_stats=True),
        nn.GroupNorm(1, 2),
    )
    before = copy.deepcopy(model.state_dict())
    assert BnReestimation().recover(model, make_context(inputs), 0.0) == RecoveryCost()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class _WithAuxiliaryHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.main, self.auxiliary = nn.BatchNorm1d(1), nn.BatchNorm1d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.auxiliary(x) if self.training else self.main(x)
        return out


def test_a_norm_that_eval_mode_skips_keeps_its_statistics(make_context: Any) -> None:
    model = _WithAuxiliaryHead()
    model.auxiliary.running_mean.fill_(7.0)  # type: ignore[union-attr]
    BnReestimation().recover(model, make_context(torch.tensor([[1.0], [3.0]])), 0.0)
    assert float(model.main.running_mean) == 2.0  # type: ignore[arg-type]
    assert float(model.auxiliary.running_mean) == 7.0  # type: ignore[arg-type]
