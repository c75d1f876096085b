from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from autoprune.errors import BadInput, UnknownName
from autoprune.models import ModelSpec, build_model, known_models


def flops(model: nn.Module, *shape: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *shape))
    return int(counter.get_total_flops())


@pytest.mark.parametrize(
    ("name", "shape", "parameters", "macs"),
    [
        ("resnet20_cifar", (3, 32, 32), 269_722, 40_551_040),
        ("resnet32_cifar", (3, 32, 32), 464_154, 68_862_592),
        ("resnet44_cifar", (3, 32, 32), 658_586, 97_174_144),
        ("resnet56_cifar", (3, 32, 32), 853_018, 125_485_056 + 640),
        ("resnet110_cifar", (3, 32, 32), 1_727_962, 252_887_680),
        ("vgg16_bn_cifar", (3, 32, 32), 14_987_722, 313_196_544 + 512 * 512 + 512 * 10),
        ("lenet", (1, 28, 28), 61_706, 416_520),
        ("digits_resnet", (1, 8, 8), 77_754, 763_520),
    ],
)
def test_sizes_are_those_of_the_papers(name: str, shape: tuple[int, ...], parameters: int, macs: int) -> None:
    model = build_model({"name": name})
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert flops(model, *shape) == 2 * macs
    assert not model.training


@pytest.mark.parametrize("name", ["resnet20_cifar", "vgg16_bn_cifar", "lenet", "digits_resnet", "resnet18"])
def test_the_number_of_classes_comes_from_the_data_unless_given(name: str) -> None:
    def width(model: nn.Module) -> int:
        return [m for m in model.modules() if isinstance(m, nn.Linear)][-1].out_features

    assert width(build_model(ModelSpec(name=name), num_classes=7)) == 7
    assert width(build_model(ModelSpec(name=name, arguments={"num_classes": 5}), num_classes=7)) == 5


def test_the_same_seed_gives_the_same_weights_and_leaves_global_randomness_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (build_model({"name": "digits_resnet"}, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"no model named 'resnet20_cifr'\. Did you mean 'resnet20_cifar'"):
        build_model({"name": "resnet20_cifr"})
    assert {"resnet50", "mobilenet_v2", "deeplabv3_resnet50", "lenet"} <= set(known_models())


def test_torchvision_segmentation_needs_no_download() -> None:
    model = build_model({"name": "lraspp_mobilenet_v3_large"}, num_classes=3)
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 32, 32))["out"].shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("name", "message"),
    [("lenet", "It takes: num_classes, in_channels, image_size"), ("resnet18", "classse")],
)
def test_arguments_that_do_not_fit_are_told(name: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        build_model({"name": name, "arguments": {"classse": 3}})
    with pytest.raises(BadInput, match="image_size must be at least 12, got 8"):
        build_model({"name": "lenet", "arguments": {"image_size": 8}})


def test_a_function_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_models.py").write_text(
        "from torch import nn\ndef mlp(width):\n    return nn.Linear(4, width)\ndef wrong():\n    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = build_model({"name": "my_models:mlp", "arguments": {"width": 6}}, num_classes=2)
    assert model(torch.zeros(1, 4)).shape == (1, 6)
    with pytest.raises(BadInput, match=r"returned a int, not a torch\.nn\.Module"):
        build_model({"name": "my_models:wrong"})


def test_weights_of_a_spec_are_loaded(tmp_path: Path) -> None:
    trained = build_model({"name": "digits_resnet"}, seed=5)
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    loaded = build_model({"name": "digits_resnet", "weights": str(tmp_path / "w.safetensors")})
    assert torch.equal(loaded.state_dict()["linear.weight"], trained.state_dict()["linear.weight"])
