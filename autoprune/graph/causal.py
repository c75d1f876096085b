"""nn.Transformer with an attention mask, without the look into the mask that no trace can follow.

Its encoder and decoder compare a mask with the causal one, value by value, to choose between two kernels that compute
the same. Where the caller does not say which it is, the mask as it was given is right in either case.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor
from torch.nn.modules import transformer

_NAME = "_detect_is_causal_mask"


@contextlib.contextmanager
def undetected() -> Iterator[None]:
    """While a model is exported: masks are added as they are, unless the caller named them causal."""
    before = vars(transformer).get(_NAME)
    if before is None:
        # A torch that does not look.
        yield
        return
    setattr(transformer, _NAME, _told)
    try:
        yield
    finally:
        setattr(transformer, _NAME, before)


def _told(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
    return is_causal is True
