"""Settings that all trials of a study share: pure data, read without importing torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import torch


class TrialSettings(BaseModel):
    """What is the same for all trials of a study. Sizes are in samples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    eval_batch_size: int = Field(default=512, ge=1, description="samples per batch of an evaluation")
    evidence_batches: int = Field(default=16, ge=1, description="training batches that gradients are taken on")
    evidence_batch_size: int = Field(default=64, ge=2, description="samples in each of them")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1 ...")
    mixed_precision: bool = Field(default=False, description="train in bfloat16 autocast")
    certified_epsilon: float | None = Field(
        default=None, ge=0, description="certify trials on all inputs so near, in pixel values of 0 to 1"
    )
    certified_samples: int = Field(default=200, ge=1, description="validation samples that are certified")
    channels_last: bool = Field(default=False, description="keep images channels last: faster convolutions")

    def torch_device(self) -> torch.device:
        """Return the device: with `auto` the GPU when there is one."""
        import torch

        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)
