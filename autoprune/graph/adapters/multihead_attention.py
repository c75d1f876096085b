"""nn.MultiheadAttention with fewer heads or narrower ones: torch derives both from embed_dim, this does not.

The weights keep their names. Not for bias_k, bias_v and add_zero_attn, whose modules stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoprune.graph.relations import Operation, Relations


def relate(module: nn.MultiheadAttention, op: Operation, rel: Relations) -> None:
    """Let queries, keys and values from one packed weight lose the same rows: `forward` divides it into equal parts."""
    weight = op.value("weight")
    labels = weight.axes[0]
    if labels is None or weight.source is not None or len(labels) != module.embed_dim:
        return
    first = rel.packed.setdefault(op.module, labels)
    if first is not labels:
        rel.tie(first, labels, op, "one of three equal parts of a weight")


def forward(
    self: Any,
    rules: Sequence[Any],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """As nn.MultiheadAttention.forward."""
    batched = query.dim() == 3
    if not batched:
        query, key, value = (x.unsqueeze(0 if self.batch_first else 1) for x in (query, key, value))
    if not self.batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    q, k, v = _projected(self, query, key, value)
    heads = _heads(self, rules, q.shape[-1])
    q, k, v = (x.reshape(*x.shape[:-1], heads, -1).transpose(1, 2) for x in (q, k, v))
    mask = _mask(attn_mask, key_padding_mask, q, heads)
    dropout = self.dropout if self.training else 0.0
    weights = None
    if need_weights:
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        weights = functional.dropout((scores if mask is None else scores + mask).softmax(-1), dropout, self.training)
        mixed = weights @ v
        weights = weights.mean(1) if average_attn_weights else weights
        weights = weights if batched else weights.squeeze(0)
    else:
        mixed = functional.scaled_dot_product_attention(q, k, v, mask, dropout)
    out = self.out_proj(mixed.transpose(1, 2).flatten(2))
    out = out if self.batch_first else out.transpose(0, 1)
    return (out if batched else out.squeeze(0 if self.batch_first else 1)), weights


def _projected(self: Any, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    if self.in_proj_weight is not None:
        weights = self.in_proj_weight.chunk(3)
    else:
        weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
    biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
    return [functional.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True)]


def _heads(self: Any, rules: Sequence[Any], width: int) -> int:
    """Heads that are left: what the views of q say, (tokens, batch * heads, dimensions)."""
    if self.num_heads == 1:
        return 1
    for rank, axes in rules:
        found = {axis: new for axis, _, new in axes}
        if rank == 3 and {1, 2} <= set(found) and width % found[2] == 0:
            return int(width // found[2])
    return width // int(self.head_dim) if width % self.head_dim == 0 else int(self.num_heads)


def _mask(attn_mask: Tensor | None, padding: Tensor | None, query: Tensor, heads: int) -> Tensor | None:
    """Both masks as one to add, broadcast over batch and heads."""
    total: Tensor | None = None
    for mask in (attn_mask, None if padding is None else padding[:, None, None, :]):
        if mask is None:
            continue
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(mask, float("-inf"))
        if mask.dim() == 3:
            mask = mask.reshape(query.shape[0], -1, *mask.shape[1:])
        total = mask if total is None else total + mask
    return total
