"""Cut everything at once. Li et al., ICLR 2017, arXiv 1608.08710, section 3.4."""

from __future__ import annotations

from dataclasses import dataclass

from autoprune.schedules._base import Schedule, Step


@dataclass(frozen=True, kw_only=True)
class OneShot(Schedule):
    """Cut to the target in one step; training comes afterwards."""

    def steps(self) -> tuple[Step, ...]:
        return (Step(progress=1.0, epochs=0.0),)
