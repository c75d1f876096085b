"""nn.TransformerEncoder around attention with fewer heads: without nested tensors, which its layers cannot take then.

Given a mask of padding at the end of sequences, torch evaluates without gradients on nested tensors and returns zeros
where padding was. Code behind it may rely on that (a mean over all tokens), so the zeros stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules import transformer


def forward(
    self: Any,
    rules: Sequence[Any],
    src: Tensor,
    mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None,
    is_causal: bool | None = None,
) -> Tensor:
    """As nn.TransformerEncoder.forward."""
    output, padding = src, src_key_padding_mask
    for layer in self.layers:
        # Attention takes the mask as it is; whether it is the causal one only chooses a kernel.
        output = layer(output, src_mask=mask, is_causal=is_causal is True, src_key_padding_mask=padding)
    if padding is not None and mask is None and _nests(self, src):
        gone = padding if padding.dtype == torch.bool else padding != 0
        if not (gone[:, :-1] & ~gone[:, 1:]).any():
            output = output.masked_fill(gone.unsqueeze(-1), 0.0)
    return output if self.norm is None else self.norm(output)


def _nests(self: Any, src: Tensor) -> bool:
    """Whether torch would use nested tensors here, if it is given padding at the ends and no other mask."""
    if torch.compiler.is_compiling() or not torch.backends.mha.get_fastpath_enabled():
        return False
    first = self.layers[0]
    learns = torch.is_grad_enabled() and any(p.requires_grad for p in (src, *first.parameters()))
    return bool(
        self.use_nested_tensor
        and isinstance(first, transformer.TransformerEncoderLayer)
        and not first.training
        and src.dim() == 3
        and not torch.is_autocast_enabled()
        and not learns
    )
