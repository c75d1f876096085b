"""Productions of random networks: steps on images, steps on tokens. Each takes any width and says what it returns."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .transformers import Built, Constant, Fused, Gated, Separate

SIDE, TOKENS, WIDTH = 5, 4, 12

IMAGE_KINDS = (
    "conv", "residual", "widen", "dense", "branches", "depthwise", "grouped", "gate", "pool",
    "transposed", "group_norm", "instance_norm", "prelu", "excite", "glu", "split", "pixel_shuffle", "channel_shuffle",
)  # fmt: skip
TOKEN_KINDS = ("fused", "constant", "separate", "batched", "built", "mlp", "gated", "swiglu")


class ImageStep(nn.Module):
    """(N, width_in, H, W) -> (N, width, H, W): the productions that share one convolution and its norm."""

    def __init__(self, kind: str, width_in: int, size: int) -> None:
        super().__init__()
        self.kind = kind
        groups = {"depthwise": width_in, "grouped": 2}.get(kind, 1)
        self.width = {
            "conv": size,
            "widen": width_in + size,
            "dense": width_in + size,
            "branches": 2 * size,
            "depthwise": width_in * (1 + size % 2),
            "grouped": 2 * size,
        }.get(kind, width_in)
        out = {"dense": size, "branches": size}.get(kind, self.width)
        if kind == "grouped" and width_in % 2:
            groups = 1
        self.main = nn.Conv2d(width_in, out, 3, padding=1, groups=groups, bias=size % 2 == 0)
        self.norm = nn.BatchNorm2d(out, affine=size % 3 > 0)
        self.pad_before, self.pad_after = size // 2, size - size // 2
        self.side = nn.Conv2d(width_in, size if kind == "branches" else width_in, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm(self.main(x)))
        if self.kind == "residual":
            return x + y
        if self.kind == "widen":
            return y + functional.pad(x, (0, 0, 0, 0, self.pad_before, self.pad_after))
        if self.kind == "dense":
            return torch.cat([x, y], dim=1)
        if self.kind == "branches":
            return torch.cat([y, functional.gelu(self.side(x))], dim=1)
        if self.kind == "gate":
            return y * torch.sigmoid(self.side(x.mean((2, 3), keepdim=True)))
        if self.kind == "pool":
            return functional.max_pool2d(y, 3, 1, 1)
        return y


class Excite(nn.Module):
    """Squeeze and excitation: the gate has a hidden width of its own."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(width, hidden, 1), nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.expand(functional.silu(self.reduce(x.mean((2, 3), keepdim=True)))))


class Halves(nn.Module):
    """One convolution for both halves of a gated unit."""

    def __init__(self, width_in: int, size: int) -> None:
        super().__init__()
        self.both = nn.Conv2d(width_in, 2 * size, 1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.glu(self.both(x), dim=1)


class Split(nn.Module):
    """Two unequal parts go two ways and are joined in the other order, as in cross stage partial networks."""

    def __init__(self, width_in: int, size: int) -> None:
        super().__init__()
        self.sizes = [size, 3]
        self.before, self.inside = nn.Conv2d(width_in, size + 3, 1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.before(x).split(self.sizes, dim=1)
        return torch.cat([second + torch.relu(self.inside(second)), torch.tanh(first)], dim=1)


class ChannelShuffle(nn.Module):
    """Two groups of a convolution are interleaved before the next one."""

    def __init__(self, width_in: int, size: int) -> None:
        super().__init__()
        self.before, self.after = (
            nn.Conv2d(width_in, 2 * size, 1),
            nn.Conv2d(2 * size, 2 * size, 3, padding=1, groups=2),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.before(x))
        n, c, h, w = y.shape
        return self.after(y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


def image_step(kind: str, width_in: int, size: int) -> tuple[nn.Module, int]:
    """A production and the width that it returns."""
    conv = nn.Conv2d(width_in, size, 1)
    match kind:
        case "transposed":
            return nn.Sequential(nn.ConvTranspose2d(width_in, size, 3, 1, 1), nn.GELU()), size
        case "group_norm":
            wide = nn.Conv2d(width_in, 2 * size, 1)
            return nn.Sequential(wide, nn.GroupNorm(size, 2 * size, affine=size % 2 > 0), nn.ReLU()), 2 * size
        case "instance_norm":
            return nn.Sequential(conv, nn.InstanceNorm2d(size, affine=size % 2 > 0), nn.ReLU()), size
        case "prelu":
            return nn.Sequential(conv, nn.PReLU(size if size % 2 else 1)), size
        case "excite":
            return Excite(width_in, size), width_in
        case "glu":
            return Halves(width_in, size), size
        case "split":
            return Split(width_in, size), size + 3
        case "pixel_shuffle":
            return nn.Sequential(nn.Conv2d(width_in, 4 * size, 1), nn.PixelShuffle(2), nn.AvgPool2d(2)), size
        case "channel_shuffle":
            return ChannelShuffle(width_in, size), 2 * size
        case _:
            step = ImageStep(kind, width_in, size)
            return step, step.width


def image_network(steps: list[tuple[str, int]], flat: bool) -> nn.Module:
    """(N, 3, SIDE, SIDE) -> (N, 3)."""
    layers: list[nn.Module] = [nn.Conv2d(3, 4, 3, padding=1)]
    width = 4
    for kind, size in steps:
        step, width = image_step(kind, width, size)
        layers.append(step)
    pool = nn.Identity() if flat else nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*layers, pool, nn.Flatten(), nn.Linear(width * (SIDE**2 if flat else 1), 3))


class Batched(nn.Module):
    """Heads folded into the batch, products by bmm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (
            layer(x).view(n, t, self.heads, self.head_dim).transpose(1, 2).reshape(n * self.heads, t, self.head_dim)
            for layer in (self.q, self.k, self.v)
        )
        mixed = torch.bmm((torch.bmm(q, k.transpose(1, 2)) * 0.4).softmax(-1), v)
        return self.proj(
            mixed.view(n, self.heads, t, self.head_dim).transpose(1, 2).reshape(n, t, self.heads * self.head_dim)
        )


class SwiGLU(nn.Module):
    """A gated unit of two layers."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(width, hidden), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Residual(nn.Module):
    """x + scale * branch(norm(x)); without a norm the embedding can be cut too."""

    def __init__(self, branch: nn.Module, normed: bool, scaled: bool) -> None:
        super().__init__()
        self.norm, self.branch = nn.LayerNorm(WIDTH) if normed else nn.Identity(), branch
        self.scale = nn.Parameter(torch.linspace(0.5, 1, WIDTH)) if scaled else 1.0

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.branch(self.norm(x))


class TokenNetwork(nn.Module):
    """(N, 3, 4, 4) -> (N, 5): patches, with or without class token and positions, then residual steps."""

    def __init__(self, steps: list[tuple[str, int, bool]], token: bool, normed: bool) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, 2, 2)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH)) if token else None
        self.position = nn.Parameter(torch.randn(1, TOKENS + token, WIDTH))
        self.steps = nn.Sequential(*(Residual(_branch(kind, size), normed, scaled) for kind, size, scaled in steps))
        self.norm, self.head = nn.LayerNorm(WIDTH) if normed else nn.Identity(), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        if self.token is not None:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.norm(self.steps(x + self.position))
        return self.head(x.mean(1) if self.token is None else x[:, 0])


def _branch(kind: str, size: int) -> nn.Module:
    attention = {"fused": Fused, "constant": Constant, "separate": Separate, "batched": Batched, "built": Built}
    if kind in attention:
        return attention[kind](WIDTH, size)  # size heads: 2, 3 or 4
    if kind == "mlp":
        return nn.Sequential(nn.Linear(WIDTH, 2 * size), nn.GELU(), nn.Linear(2 * size, WIDTH))
    return {"gated": Gated, "swiglu": SwiGLU}[kind](WIDTH, 2 * size)
