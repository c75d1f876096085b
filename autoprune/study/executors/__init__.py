"""Executors carry jobs from the controller to workers and back."""

from __future__ import annotations

from autoprune.study.config import ExecutorSpec
from autoprune.study.executors._base import Executor

__all__ = ["Executor", "build_executor"]


def build_executor(spec: ExecutorSpec) -> Executor:
    """Return the executor of a spec; Ray is imported only for `ray`."""
    if spec.name == "inline":
        from autoprune.study.executors.inline import Inline

        return Inline()
    if spec.name == "local":
        from autoprune.study.executors.local import Local

        return Local(workers=spec.worker_count(), threads=spec.threads)
    if spec.name == "replay":
        from autoprune.study.executors.replay import Replay

        return Replay(workers=spec.worker_count())
    from autoprune.study.executors.ray import OnRay

    return OnRay(
        workers=spec.workers,
        threads=spec.threads,
        cpus_per_trial=float(spec.threads) if spec.cpus_per_trial is None else spec.cpus_per_trial,
        gpus_per_trial=spec.gpus_per_trial,
        address=spec.address,
    )
