"""Batch-norm statistics of the cut model, estimated anew. Yu and Huang, ICCV 2019, arXiv 1903.05134.

    mean = (1 / B) * sum over batches b of mean_b,    variance = (1 / B) * sum over batches b of variance_b

B batches. As in training, the norms normalise by the batch while they are estimated, and variance_b is
unbiased. The mean over batches is exact where training takes an exponential one, so nothing remains of the
model before the cut (the paper's post-statistics). Weights do not change. That pruned candidates must be
judged after such a step is the point of Li et al., ECCV 2020 (EagleEye), arXiv 2007.02491, who average
exponentially.

The samples are the same for every trial with the same data: a fixed random subset, not augmented.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autoprune.data import Split
from autoprune.errors import BadData, TrialFailed
from autoprune.fields import integer
from autoprune.recovery._base import Recovery, RecoveryContext, RecoveryCost
from autoprune.seeds import derive_seed
from autoprune.tasks import forward
from autoprune.training import out_of_memory_fails

_SUBSET_SEED = derive_seed(0, "bn_reestimation")


@dataclass(frozen=True, kw_only=True)
class BnReestimation(Recovery):
    """Estimate the statistics of all batch norms anew; costs nothing where there are none."""

    trains: ClassVar[bool] = False

    samples: int = integer(
        1024, valid=(2, 10_000_000), search=(256, 4096), log=True, help="training samples of the estimate"
    )
    batch_size: int = integer(
        256,
        valid=(2, 65536),
        search=(128, 512),
        log=True,
        help="samples per batch, over which variances are taken",
    )

    def recover(self, model: nn.Module, context: RecoveryContext, epochs: float) -> RecoveryCost:
        """Raises BadData below 2 training samples, TrialFailed for statistics that are not finite."""
        model.to(context.device).eval()
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and _has_statistics(m)]
        if not norms:
            return RecoveryCost()
        chunks = _calibration_batches(context.data.train, self.samples, self.batch_size)
        autocast = torch.autocast(context.device.type, torch.bfloat16, enabled=context.mixed_precision)
        with out_of_memory_fails("bn_reestimation"), torch.no_grad(), autocast, _estimating(norms):
            for inputs, _ in context.data.train.gather(chunks, device=context.device):
                forward(model, inputs)
        _check_finite(model, norms)
        return RecoveryCost(forward_samples=sum(map(len, chunks)))


def _has_statistics(norm: _BatchNorm) -> bool:
    return norm.track_running_stats and norm.running_mean is not None


def _calibration_batches(split: Split, samples: int, batch_size: int) -> list[Tensor]:
    """Return the indices of batches, (B,) each, of nearly equal size, because all have the same weight.

    No batch has a single sample, which has no variance. A larger `samples` extends the subset of a smaller
    one.
    """
    count = min(samples, len(split))
    if count < 2:
        raise BadData(f"bn_reestimation needs at least 2 training samples, the split has {count}")
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(_SUBSET_SEED))
    number = min(-(-count // batch_size), count // 2)
    return list(order[:count].tensor_split(number))


@contextmanager
def _estimating(norms: list[_BatchNorm]) -> Iterator[None]:
    """Let only these modules gather statistics, from nothing, as plain means.

    A norm that saw no batch keeps what it had.
    """
    before = [(n, n.momentum, {k: v.clone() for k, v in n.named_buffers(recurse=False)}) for n in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.training = True
        yield
    finally:
        for norm, momentum, buffers in before:
            norm.training, norm.momentum = False, momentum
            if not int(norm.num_batches_tracked or 0):
                for name, value in buffers.items():
                    norm.get_buffer(name).copy_(value)


def _check_finite(model: nn.Module, norms: list[_BatchNorm]) -> None:
    names = {module: name for name, module in model.named_modules()}
    for norm in norms:
        for statistic in (norm.running_mean, norm.running_var):
            if statistic is not None and not bool(statistic.isfinite().all()):
                raise TrialFailed(f"the batch statistics of {names[norm]!r} became NaN or infinite")
