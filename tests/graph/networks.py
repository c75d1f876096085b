"""Small networks that between them use every rule. Each entry: (module, example inputs)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def conv_bn(into: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(into, out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(),
    )


def head(width: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))


class Residual(nn.Module):
    """Basic block; a 1x1 projection where the width or the resolution changes."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or into != out:
            self.shortcut = nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


class ZeroPadShortcut(nn.Module):
    def __init__(self, into: int, out: int, stride: int, before: int) -> None:
        super().__init__()
        self.pad_before = before
        self.pad_after = out - into - self.pad_before
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad_before, self.pad_after))


class FixedPad(nn.Module):
    """The same shortcut, with its numbers where no adapter finds them."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.widths = (0, 0, 0, 0, (out - into) // 2, (out - into) // 2)

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x[:, :, ::2, ::2], self.widths)


def residual(shortcut: Callable[[], nn.Module] | None = None) -> nn.Module:
    blocks = [Residual(6, 6, 1), Residual(6, 10, 2), Residual(10, 10, 1), Residual(10, 16, 2)]
    if shortcut is not None:
        blocks[1].shortcut = shortcut()
        blocks[3] = Residual(10, 10, 1)
        return nn.Sequential(conv_bn(3, 6), *blocks, head(10))
    return nn.Sequential(conv_bn(3, 6), *blocks, head(16))


class PreActivation(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(width), nn.Conv2d(width, 2 * width, 3, 1, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(2 * width), nn.Conv2d(2 * width, width, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(functional.relu(self.bn2(self.conv1(functional.relu(self.bn1(x))))))


class Dense(nn.Module):
    def __init__(self, into: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(into + i * growth), nn.ReLU(), nn.Conv2d(into + i * growth, growth, 3, 1, 1))
            for i in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


class Inception(nn.Module):
    def __init__(self, into: int) -> None:
        super().__init__()
        self.one = conv_bn(into, 4, 1)
        self.three = nn.Sequential(conv_bn(into, 5, 1), conv_bn(5, 7))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_bn(into, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.pool(x)], dim=1)


class SqueezeExcite(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(width, 3, 1), nn.Conv2d(3, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.expand(functional.silu(self.reduce(x.mean((2, 3), keepdim=True)))))


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.head = conv_bn(3, 8), conv_bn(8, 8), head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.shared(self.shared(self.stem(x))))


class TiedWeights(nn.Module):
    """Two convolutions hold the same weight; an autoencoder reads one weight both ways."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = (
            conv_bn(3, 8),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
        )
        self.b.weight = self.a.weight
        self.head = head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.relu(self.b(functional.relu(self.a(self.stem(x))))))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.vector = nn.Sequential(conv_bn(3, 6), nn.AdaptiveAvgPool2d(1)), nn.Linear(4, 7)
        self.hidden, self.out = nn.Linear(13, 9), nn.Linear(9, 3)

    def forward(self, image: Tensor, vector: Tensor) -> Tensor:
        both = torch.cat([self.image(image).flatten(1), torch.tanh(self.vector(vector))], dim=-1)
        return self.out(functional.relu(self.hidden(both)))


class DictOutput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.first, self.second = conv_bn(3, 8), head(8), head(8)

    def forward(self, x: Tensor) -> dict[str, Any]:
        features = self.body(x)
        return {"first": self.first(features), "more": (self.second(features),)}


class LayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gamma, self.head = conv_bn(3, 8), nn.Parameter(torch.full((8, 1, 1), 1e-6)), head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gamma * self.stem(x))


class Auxiliary(nn.Module):
    """A second head that only training takes."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.aux = nn.Sequential(conv_bn(3, 8), conv_bn(8, 6)), head(6), head(6)

    def forward(self, x: Tensor) -> Any:
        x = self.body(x)
        return (self.head(x), self.aux(x)) if self.training else self.head(x)


class NormalisedAuxiliary(Auxiliary):
    """Normalises single numbers in training, which needs more than one sample."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 7, 1), nn.BatchNorm2d(7), head(7))


class Chunked(nn.Module):
    """A gated unit: one half scales the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 12, 3), head(6)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.stem(x).chunk(2, dim=1)
        return self.head(first * second.sigmoid())


def image(size: int = 10) -> Tensor:
    return torch.zeros(1, 3, size, size)


def networks() -> dict[str, tuple[nn.Module, Any]]:
    """All networks, with seeded weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _networks()


def _networks() -> dict[str, tuple[nn.Module, Any]]:
    return {
        "plain": (nn.Sequential(conv_bn(3, 8), nn.MaxPool2d(2), conv_bn(8, 12), head(12)), image()),
        "bias_without_norm": (
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.LeakyReLU(), nn.Conv2d(8, 6, 3, bias=True), nn.GELU(), head(6)),
            image(),
        ),
        "residual_projection": (residual(), image()),
        "residual_zero_pad": (residual(lambda: ZeroPadShortcut(6, 10, 2, before=2)), image()),
        "residual_pad_behind": (residual(lambda: ZeroPadShortcut(6, 10, 2, before=0)), image(9)),
        "pre_activation": (
            nn.Sequential(conv_bn(3, 6), PreActivation(6), PreActivation(6), nn.BatchNorm2d(6), head(6)),
            image(),
        ),
        "dense": (
            nn.Sequential(conv_bn(3, 6), Dense(6, 4, 3), conv_bn(18, 8, 1), Dense(8, 4, 2), head(16)),
            image(),
        ),
        "inception": (nn.Sequential(conv_bn(3, 6), Inception(6), Inception(14), head(14)), image()),
        "depthwise": (
            nn.Sequential(conv_bn(3, 8), conv_bn(8, 8, groups=8), conv_bn(8, 6, 1), head(6)),
            image(),
        ),
        "depthwise_multiplier_2": (
            nn.Sequential(conv_bn(3, 8), conv_bn(8, 16, groups=8), conv_bn(16, 6, 1), head(6)),
            image(),
        ),
        "grouped": (
            nn.Sequential(conv_bn(3, 8), conv_bn(8, 12, groups=4), conv_bn(12, 6, groups=2), head(6)),
            image(),
        ),
        "squeeze_excite": (nn.Sequential(conv_bn(3, 8), SqueezeExcite(8), conv_bn(8, 6), head(6)), image()),
        "flatten_linear": (
            nn.Sequential(conv_bn(3, 6, stride=2), nn.Flatten(), nn.Linear(6 * 25, 9), nn.ReLU(), nn.Linear(9, 4)),
            image(),
        ),
        "mlp": (
            nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 3)),
            torch.zeros(1, 6),
        ),
        "mlp_on_sequences": (
            nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)),
            torch.zeros(2, 5, 6),
        ),
        "called_twice": (CalledTwice(), image()),
        "tied_weights": (TiedWeights(), image()),
        "prelu": (
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Conv2d(8, 6, 3), nn.PReLU(), head(6)),
            image(),
        ),
        "norm_without_affine": (
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False), nn.ReLU(), head(8)),
            image(),
        ),
        "instance_norm": (
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), head(6)),
            image(),
        ),
        "transposed": (
            nn.Sequential(conv_bn(3, 8, stride=2), nn.ConvTranspose2d(8, 6, 2, 2), nn.ReLU(), head(6)),
            image(),
        ),
        "one_dimensional": (
            nn.Sequential(
                nn.Conv1d(2, 8, 3),
                nn.BatchNorm1d(8),
                nn.ReLU(),
                nn.AvgPool1d(2),
                nn.Flatten(),
                nn.Linear(32, 3),
            ),
            torch.zeros(1, 2, 10),
        ),
        "two_inputs": (TwoInputs(), (image(), torch.zeros(1, 4))),
        "two_inputs_by_name": (TwoInputs(), {"vector": torch.zeros(1, 4), "image": image()}),
        "dict_output": (DictOutput(), image()),
        "layer_scale": (LayerScale(), image()),
        "auxiliary_head": (Auxiliary(), image()),
        "normalised_auxiliary": (NormalisedAuxiliary(), image()),
        "chunked": (Chunked(), image()),
    }
