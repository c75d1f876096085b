"""The forecast by hand: jobs by rung, samples, seconds."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from autoprune.base import Base
from autoprune.data import build_data
from autoprune.models import build_model
from autoprune.study import forecast as forecasting
from autoprune.study.config import load
from autoprune.study.forecast import ForwardTime, forecast, time_forward

STUDY = {
    "name": "small",
    "model": {"name": "digits_resnet"},
    "data": {"name": "digits"},
    "targets": [0.5, 0.25],
    "baselines": ["uniform_l1"],
    "rungs": {"epochs": [0, 0.5, 2], "reduction": 2, "validation_samples": [64, None, None]},
    "budget": {"trials": 10},
    "trial": {"device": "cpu"},
    "executor": {"name": "local", "workers": 2},
}


def test_forecast_by_hand() -> None:
    data = SimpleNamespace(train=range(1000), validation=range(300))
    time = ForwardTime(device="cpu", sample_ms=9.0, batch=64, batch_ms=64.0)
    found = forecast(load(STUDY).config, data, time)  # type: ignore[arg-type]
    # a baseline for each of the two targets always goes on, of the other eight every second
    assert found.jobs == (10, 6, 4)
    assert found.trained_samples == 6 * 500 + 4 * 1500
    assert found.forward_samples == 10 * 64 + 6 * 300 + 4 * 300
    # a millisecond a sample, three times that in training; targets keep 3/8 of the model on average; 0.2 s a job
    passes = 3 * 9000 + 3640
    assert found.seconds == pytest.approx((passes / 1000 * 0.375 + 0.2 * 20) / 2)
    assert found.workers == 2
    measured = forecast(load(STUDY).config, data, time, measured=500)  # type: ignore[arg-type]
    assert measured.forward_samples == 3640 + 1000
    assert measured.seconds > found.seconds


@pytest.mark.parametrize(("sample_ms", "batch"), [(0.5, 64), (50.0, 10), (5000.0, 1)])
def test_slow_models_are_timed_with_a_smaller_batch(
    monkeypatch: pytest.MonkeyPatch, sample_ms: float, batch: int
) -> None:
    sizes: list[int] = []

    def latency_ms(model: object, inputs: torch.Tensor, **_: int) -> float:
        sizes.append(len(inputs))
        return sample_ms * len(inputs)

    monkeypatch.setattr(forecasting, "latency_ms", latency_ms)
    base = Base(build_model({"name": "digits_resnet"}, num_classes=10), structure=None)  # type: ignore[arg-type]
    found = time_forward(base, build_data({"name": "digits"}), torch.device("cpu"))
    assert sizes == [1, batch]
    assert found == ForwardTime(device="cpu", sample_ms=sample_ms, batch=batch, batch_ms=sample_ms * batch)
    assert found.seconds_per_sample == pytest.approx(sample_ms / 1000)
