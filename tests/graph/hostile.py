"""Models that do what models should not: each must be cut exactly, frozen with a reason, or refused clearly."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from .networks import conv_bn, head, image

Forward = Callable[..., Any]


class Model(nn.Module):
    """A model of these parts with this forward pass."""

    def __init__(self, run: Forward, **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self, *args, **kwargs)


class StraightThrough(torch.autograd.Function):
    """Python code behind the back of autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


@dataclass
class Output:
    logits: Tensor
    parts: tuple[Tensor, ...]


def in_place(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    y.relu_()
    y.add_(m.b(x)).mul_(0.5)
    y += m.c(x)
    return m.head(y)


def assigned(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    z = torch.zeros_like(y)
    z[:, :4] = y[:, :4]
    z[:, 4:] = m.b(x)
    return m.head(m.c(z))


def assigned_pixels(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).clone()
    y[:, :, 0:2] = 0
    y[:, :, :, -1] = y[:, :, :, 0]
    return m.head(m.c(y))


def through_a_view(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    y.view(1, 2, 4, 10, 10)[:, 0].mul_(2)
    return m.head(y)


def into_a_buffer(m: Any, x: Tensor) -> Tensor:
    m.memory.copy_(m.a(x))
    return m.head(m.c(m.memory))


def own_state(m: Any, x: Tensor) -> Tensor:
    m.count += 1
    m.seen = m.a(x)
    m.average = 0.9 * m.average + 0.1 * m.seen.mean((0, 2, 3))
    return m.head(m.seen - m.average.view(1, -1, 1, 1))


def alternates(m: Any, x: Tensor) -> Tensor:
    m.odd = not getattr(m, "odd", False)
    return m.head(m.a(x) if m.odd else m.b(x))


def two_sizes(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    both = [m.b(y).mean((2, 3)), m.b(functional.avg_pool2d(y, 2)).mean((2, 3))]
    return m.out(torch.cat(both, 1))


def plain_parameters(m: Any, x: Tensor) -> Tensor:
    y = functional.relu(functional.conv2d(x, m.first, m.shift, padding=1))
    return m.head(functional.relu(functional.conv2d(y, m.second)))


def training_heads(m: Any, x: Tensor) -> dict[str, Any]:
    y = m.a(x)
    found = {"out": m.head(m.b(y))}
    return found | {"auxiliary": (m.side(y),)} if m.training else found


def chance_in_training(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    if m.training and torch.rand(1).item() < 0.5:
        y = m.side(y)
    return m.head(m.c(y))


def mixed_precision(m: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        y = m.a(x)
    return m.head(m.c(y.float().to(x.dtype)))


def doubled(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return 2 * output


def hooked() -> nn.Module:
    model = nn.Sequential(conv_bn(3, 8), conv_bn(8, 6), head(6))
    model[0].register_forward_hook(doubled)
    model[1].register_full_backward_hook(lambda *_: None)
    return model


def conv(out: int, into: int = 3) -> nn.Conv2d:
    return nn.Conv2d(into, out, 3, padding=1)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def cases() -> dict[str, tuple[nn.Module, Any, dict[str, int]]]:
    """Models, inputs, and the groups that can be cut; all else is frozen."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(0)
        return _cases()


def _cases() -> dict[str, tuple[nn.Module, Any, dict[str, int]]]:
    tail = {"c": conv_bn(8, 6), "head": head(6)}
    return {
        "in_place": (Model(in_place, a=conv(8), b=conv(8), c=conv(8), head=head(8)), image(), {"a": 8}),
        "assigned": (Model(assigned, a=conv(8), b=conv(4), **tail), image(), {"a#2": 4, "c.0": 6}),
        "assigned_pixels": (Model(assigned_pixels, a=conv(8), **tail), image(), {"a": 8, "c.0": 6}),
        "through_a_view": (Model(through_a_view, a=conv(8), head=head(8)), image(), {}),
        "into_a_buffer": (
            Model(into_a_buffer, a=conv(8), memory=torch.zeros(1, 8, 10, 10), **tail),
            image(),
            {"a": 8, "c.0": 6},
        ),
        "own_state": (
            Model(own_state, a=conv(8), head=head(8), count=torch.tensor(0), average=torch.zeros(8)),
            image(),
            {"a": 8},
        ),
        "alternates": (Model(alternates, a=conv_bn(3, 8), b=conv_bn(3, 8), head=head(8)), image(), {}),
        "custom_function": (
            Model(lambda m, x: m.head(m.c(StraightThrough.apply(m.a(x)))), a=conv(8), **tail),
            image(),
            {"a": 8, "c.0": 6},
        ),
        "weight_norm": (
            nn.Sequential(parametrizations.weight_norm(conv(8)), nn.ReLU(), conv(6, 8), nn.ReLU(), head(6)),
            image(),
            {"2": 6},
        ),
        "spectral_norm": (
            nn.Sequential(parametrizations.spectral_norm(conv(8)), nn.ReLU(), conv(6, 8), nn.ReLU(), head(6)),
            image(),
            {"2": 6},
        ),
        "two_sizes": (
            Model(two_sizes, a=conv_bn(3, 8), b=conv_bn(8, 6), out=nn.Linear(12, 5)),
            image(),
            {"a.0": 8, "b.0": 6},
        ),
        "mixed_buffers": (
            Model(
                lambda m, x: m.head((m.a(x) * m.scale + m.shift) * m.flag),
                a=conv_bn(3, 8),
                head=head(8),
                scale=torch.randn(8, 1, 1),
                shift=torch.arange(8).view(8, 1, 1),
                flag=torch.ones(8, 1, 1, dtype=torch.bool),
            ),
            image(),
            {"a.0": 8},
        ),
        "plain_parameters": (
            Model(
                plain_parameters,
                first=parameter(8, 3, 3, 3),
                shift=parameter(8),
                second=parameter(6, 8, 3, 3),
                head=head(6),
            ),
            image(),
            {"first": 8, "second": 6},
        ),
        "parameter_list": (
            Model(
                lambda m, x: m.out(functional.relu(functional.linear(functional.relu(x @ m.w[0]), m.w[1]))),
                w=nn.ParameterList([parameter(5, 8), parameter(6, 8)]),
                out=nn.Linear(6, 3),
            ),
            torch.zeros(2, 5),
            {"w": 8, "w#2": 6},
        ),
        "chosen_by_index": (
            Model(
                lambda m, x: m.head(m.blocks[-1](m.blocks[:1](m.blocks[1](x)))),
                blocks=nn.Sequential(conv_bn(8, 6), conv_bn(3, 8), conv_bn(6, 7)),
                head=head(7),
            ),
            image(),
            {"blocks.1.0": 8, "blocks.0.0": 6, "blocks.2.0": 7},
        ),
        "dataclass_output": (
            Model(
                lambda m, x: Output(m.head(m.c(y := m.a(x))), (m.side(y), x)),
                a=conv_bn(3, 8),
                side=head(8),
                **tail,
            ),
            image(),
            {"a.0": 8, "c.0": 6},
        ),
        "nested_inputs": (
            Model(
                lambda m, found, others: m.head(m.a(found["x"]) + m.b(others[0])), a=conv(8), b=conv(8, 2), head=head(8)
            ),
            ({"x": image()}, [torch.zeros(1, 2, 10, 10)]),
            {"a": 8},
        ),
        "training_heads": (
            Model(training_heads, a=conv_bn(3, 8), b=conv_bn(8, 6), head=head(6), side=head(8)).train(),
            image(),
            {"a.0": 8, "b.0": 6},
        ),
        "chance_in_training": (
            Model(chance_in_training, a=conv_bn(3, 8), side=conv_bn(8, 8), **tail),
            image(),
            {"c.0": 6},
        ),
        "recurrent": (
            Model(
                lambda m, x: m.out(functional.relu(m.hidden(m.rnn(m.a(x))[0][:, -1]))),
                a=nn.Linear(4, 5),
                rnn=nn.GRU(5, 6, batch_first=True),
                hidden=nn.Linear(6, 8),
                out=nn.Linear(8, 3),
            ),
            torch.zeros(1, 5, 4),
            {"hidden": 8},
        ),
        "fourier": (
            Model(
                lambda m, x: m.head(m.c(torch.fft.irfft2(torch.fft.rfft2(m.a(x)), s=(10, 10)))), a=conv_bn(3, 8), **tail
            ),
            image(),
            {"c.0": 6},
        ),
        "standardised_weight": (
            Model(
                lambda m, x: m.head(functional.conv2d(x, m.w * m.w.std((1, 2, 3), keepdim=True))),
                w=parameter(8, 3, 3, 3),
                head=head(8),
            ),
            image(),
            {},
        ),
        "autocast_region": (Model(mixed_precision, a=conv_bn(3, 8), **tail), image(), {"a.0": 8, "c.0": 6}),
        "hooked": (hooked(), image(), {"0.0": 8, "1.0": 6}),
        "no_parameters": (nn.Sequential(nn.ReLU(), nn.Flatten()), image(), {}),
        "compiled": (
            torch.compile(nn.Sequential(conv_bn(3, 8), conv_bn(8, 6), head(6)), backend="eager"),
            image(),
            {"_orig_mod.0.0": 8, "_orig_mod.1.0": 6},
        ),
    }
