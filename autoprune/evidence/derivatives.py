"""Where derivatives of a whole model are taken twice, or for many samples at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from autoprune.data.split import isolated_random_state
from autoprune.errors import NotApplicable
from autoprune.evidence.kinds import BATCH_ORDER_SEED


@contextmanager
def differentiable() -> Iterator[None]:
    """Use the attention kernels that can be differentiated twice, and leave the global random states alone.

    Raises NotApplicable when an operator of the model has no such derivative.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with isolated_random_state(BATCH_ORDER_SEED), sdpa_kernel(SDPBackend.MATH):
            yield
    except RuntimeError as error:
        if "is not implemented" not in str(error):
            raise
        raise NotApplicable(f"the model cannot be differentiated as this needs: {error}") from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
