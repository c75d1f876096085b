"""What trials work with, and what they cost."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from autoprune.base import Base, fresh_model
from autoprune.cost.layer_times import LayerTimes, time_layers
from autoprune.data import Data
from autoprune.evidence import ModelEvidence, Source
from autoprune.files import read_json, write_json
from autoprune.recovery import RecoveryContext
from autoprune.settings import TrialSettings
from autoprune.tasks import Task


@dataclass(frozen=True)
class Bench:
    """Everything a trial needs besides its recipe; made once per process and shared by its trials.

    report: told how many cut models an allocation has measured so far.
    """

    base: Base
    data: Data
    task: Task
    settings: TrialSettings = field(default_factory=TrialSettings)
    evidence_folder: Path | None = None
    report: Callable[[int], None] | None = None

    @functools.cached_property
    def device(self) -> torch.device:
        """Where trials run."""
        return self.settings.torch_device()

    @functools.cached_property
    def model(self) -> nn.Module:
        """The base model where trials run, in eval mode. Not to be changed."""
        return self.laid_out(self.base.model.to(self.device).eval())

    def laid_out(self, model: nn.Module) -> nn.Module:
        """Return the model, in place, in the memory layout that the settings ask for."""
        if self.settings.channels_last:
            return model.to(memory_format=torch.channels_last)
        return model

    @functools.cached_property
    def source(self) -> Source:
        """Where evidence comes from."""
        s = self.settings
        return Source(
            data=self.data,
            task=self.task,
            batches=s.evidence_batches,
            batch_size=s.evidence_batch_size,
            device=self.device,
        )

    @functools.cached_property
    def evidence(self) -> ModelEvidence:
        """Evidence about the base model, shared by all trials."""
        return ModelEvidence(
            self.model,
            self.base.structure,
            self.source,
            seed=0,
            cache=self.evidence_folder,
            fingerprint=self.base.fingerprint,
        )

    @functools.cached_property
    def layer_times(self) -> LayerTimes:
        """Times of the base model's layers on one sample, here and with this many threads.

        Every process with the same evidence folder has the same.
        """
        structure, folder = self.base.structure, self.evidence_folder
        where = f"{self.device.type}_{torch.get_num_threads()}_threads"
        file = None if folder is None else folder / f"layer_times_{structure.fingerprint[:16]}_{where}.json"
        if file is not None and file.is_file():
            return LayerTimes.parse(read_json(file))
        inputs = self.data.train.one_sample(self.device)
        found = time_layers(self.model, structure, inputs, channels_last=self.settings.channels_last)
        if file is not None:
            write_json(file, found.plain())
        return found

    def fresh(self, seed: int) -> nn.Module:
        """Return a model of the base model's architecture with new weights, where trials run, in eval mode."""
        return self.laid_out(fresh_model(self.base, self.data.num_classes, seed).to(self.device).eval())

    def recovery_context(self, seed: int) -> RecoveryContext:
        """Return what recovery methods work with."""
        return RecoveryContext(
            data=self.data,
            task=self.task,
            teacher=self.model,
            seed=seed,
            device=self.device,
            mixed_precision=self.settings.mixed_precision,
            fresh=self.fresh,
        )


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a piece of work took. `forward_seconds` is the part spent in calibration and evaluation passes."""

    trained_samples: int = 0
    forward_samples: int = 0
    seconds: float = 0.0
    forward_seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            trained_samples=self.trained_samples + other.trained_samples,
            forward_samples=self.forward_samples + other.forward_samples,
            seconds=self.seconds + other.seconds,
            forward_seconds=self.forward_seconds + other.forward_seconds,
        )
