from __future__ import annotations

import os

import pytest
import torch

from autoprune.data import build_data
from autoprune.models import build_model
from autoprune.models.resnet_cifar import ZeroPadShortcut
from autoprune.tasks import build_task, check_fits, evaluate


def test_the_shortcut_takes_every_second_pixel_and_pads_with_zeros() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4)
    out = ZeroPadShortcut(stride=2, pad_before=1, pad_after=2)(x)
    assert out.shape == (1, 4, 2, 2)
    assert out[0, 1].tolist() == [[0.0, 2.0], [8.0, 10.0]]
    assert out[0, [0, 2, 3]].abs().sum() == 0


def test_the_shortcut_reads_its_attributes_and_holds_no_parameters() -> None:
    shortcut = ZeroPadShortcut(stride=2, pad_before=8, pad_after=8)
    shortcut.pad_before, shortcut.pad_after = 3, 1
    assert shortcut(torch.ones(2, 5, 8, 8)).shape == (2, 9, 4, 4)
    assert not list(shortcut.state_dict())
    assert "pad_before=3" in repr(shortcut)


def test_stages_widen_with_half_of_the_zeros_on_each_side() -> None:
    model = build_model({"name": "resnet20_cifar"})
    shortcuts = {name: m for name, m in model.named_modules() if isinstance(m, ZeroPadShortcut)}
    assert {n: (m.stride, m.pad_before, m.pad_after) for n, m in shortcuts.items()} == {
        "layer2.0.shortcut": (2, 8, 8),
        "layer3.0.shortcut": (2, 16, 16),
    }


def test_any_image_size_fits() -> None:
    assert build_model({"name": "resnet20_cifar"})(torch.zeros(2, 3, 17, 24)).shape == (2, 10)


@pytest.mark.slow
def test_published_weights_reach_their_accuracy() -> None:
    root, weights = (os.environ.get(n) for n in ("AUTOPRUNE_CIFAR10_JPEG", "AUTOPRUNE_RESNET20_WEIGHTS"))
    if not root or not weights:
        pytest.skip("AUTOPRUNE_CIFAR10_JPEG (zip or folder) and AUTOPRUNE_RESNET20_WEIGHTS are not both set")
    data = build_data(
        {
            "name": "image_folder",
            "root": root,
            "cache": "memory",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
        }
    )
    model = build_model({"name": "resnet20_cifar", "weights": weights}, data.num_classes)
    check_fits(model, data, build_task())
    assert data.test is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (45_000, 5_000, 10_000)
    # a pixel decoded otherwise by another JPEG library may turn an image or two
    assert evaluate(model, data.test, build_task(), 64).accuracy == pytest.approx(0.8794, abs=0.001)
