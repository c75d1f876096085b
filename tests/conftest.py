"""What every test relies on: one thread, so that workers times threads never exceed the cores, and no stray seeds."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from autoprune.base import make_base
from autoprune.data import build_data
from autoprune.models import build_model
from autoprune.models.training import train_base
from autoprune.settings import TrialSettings
from autoprune.specs import ModelSpec, TrainSpec
from autoprune.tasks import build_task
from autoprune.trial import Bench

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def digits_bench() -> Bench:
    """A small residual network trained for two epochs on digits, with its data; not to be changed."""
    data = build_data({"name": "digits"})
    model = build_model({"name": "digits_resnet"}, num_classes=10)
    task = build_task()
    train_base(model, data, task, TrainSpec(epochs=2), seed=0)
    base = make_base(model, data.example_inputs, spec=ModelSpec(name="digits_resnet", arguments={"num_classes": 10}))
    return Bench(base, data, task, TrialSettings(evidence_batches=4, evidence_batch_size=32, device="cpu"))


@pytest.fixture(scope="session")
def deep_bench() -> Bench:
    """Nine residual blocks, seven of which can be skipped, trained for three epochs on digits; not to be changed."""
    data = build_data({"name": "digits"})
    spec = ModelSpec(name="resnet20_cifar", arguments={"num_classes": 10, "in_channels": 1})
    model, task = build_model(spec), build_task()
    train_base(model, data, task, TrainSpec(epochs=3), seed=0)
    base = make_base(model, data.example_inputs, spec=spec)
    return Bench(base, data, task, TrialSettings(evidence_batches=4, evidence_batch_size=32, device="cpu"))
