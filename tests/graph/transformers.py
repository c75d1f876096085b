"""Small attention networks, one for each way that libraries write it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Fused(nn.Module):
    """One layer for q, k and v; sizes in attributes."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = heads, width // heads, width
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        x = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(n, t, self.attn_dim))


class Constant(nn.Module):
    """The width of the input decides on every size, and the scale stands in the code."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.table = nn.Parameter(torch.randn(9, heads))
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        qkv = self.qkv(x).reshape(n, t, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        scores = qkv[0] * (c // self.num_heads) ** -0.5 @ qkv[1].transpose(-2, -1)
        rows = torch.arange(t)
        bias = self.table[(rows[:, None] - rows[None, :]).flatten() + 4].view(t, t, self.num_heads).permute(2, 0, 1)
        return self.proj(((scores + bias).softmax(-1) @ qkv[2]).transpose(1, 2).reshape(n, t, c))


class Separate(nn.Module):
    """Three layers, products by einsum, a gate on the result."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, 2 * width) for _ in range(3))
        self.gate, self.proj = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)) for layer in (self.q, self.k, self.v))
        scores = torch.einsum("nqhd,nkhd->nhqk", q, k * 0.3).softmax(-1)
        mixed = torch.einsum("nhqk,nkhd->nqhd", scores, v).flatten(2)
        return self.proj(mixed * functional.silu(self.gate(x)))


class Built(nn.Module):
    """nn.MultiheadAttention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Gated(nn.Module):
    """GLU with one layer for both halves."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.up(x).chunk(2, dim=-1)
        return self.down(value * functional.silu(gate))


class Transformer(nn.Module):
    """Patches, class token, position embedding, pre-norm blocks with layer scale."""

    def __init__(self, attention: type[nn.Module], width: int = 12, heads: int = 4) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, width, 5, 5), nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 4 + 1, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(5))
        self.attention = nn.ModuleList(attention(width, heads) for _ in range(2))  # type: ignore[call-arg]
        self.mlp = nn.ModuleList((nn.Sequential(nn.Linear(width, 9), nn.GELU(), nn.Linear(9, width)), Gated(width, 10)))
        self.scale, self.head = nn.Parameter(torch.full((width,), 0.5)), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)[:, :4]
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        for i in range(2):
            x = x + self.scale * self.attention[i](self.norms[2 * i](x))
            x = x + self.mlp[i](self.norms[2 * i + 1](x))
        return self.head(self.norms[4](x)[:, 0])


class Grouped(nn.Module):
    """Group normalisation: whole groups are the units."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.first, self.second = nn.GroupNorm(4, 8), nn.GroupNorm(3, 12, affine=False)
        self.shuffle, self.head = nn.PixelShuffle(2), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.gelu(self.second(self.body(functional.relu(self.first(self.stem(x))))))
        return self.head(self.shuffle(x).mean((2, 3)))


ATTENTION: dict[str, type[nn.Module]] = {"fused": Fused, "constant": Constant, "separate": Separate, "built": Built}


def transformer(name: str) -> tuple[nn.Module, Any]:
    """A transformer of this attention, in eval mode, and one image."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Transformer(ATTENTION[name]).eval(), torch.randn(1, 3, 10, 10)
