from __future__ import annotations

import torch

from autoprune.data import build_data
from autoprune.models import TrainSpec, build_model, train_base
from autoprune.tasks import build_task, evaluate


def test_the_digits_network_learns_the_digits_in_seconds() -> None:
    data, task = build_data({"name": "digits"}), build_task()
    model = build_model({"name": "digits_resnet"}, data.num_classes)
    seen: list[int] = []
    report = train_base(model, data, task, TrainSpec(epochs=10), seed=0, progress=lambda n, _: seen.append(n))
    assert data.test is not None
    assert evaluate(model, data.test, task).accuracy >= 0.97
    assert report.samples == seen[-1] == 10 * len(data.train)
    assert not model.training


def test_the_same_seed_trains_the_same_model() -> None:
    data, task = build_data({"name": "digits", "augment": "crop_flip"}), build_task()
    models = [build_model({"name": "digits_resnet"}) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        train_base(model, data, task, TrainSpec(epochs=0.2), seed=seed)
    one, same, other = (model.state_dict()["conv1.weight"] for model in models)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
