"""Recovery wins back accuracy after a cut."""

from autoprune.recovery._base import Cut, Recovery, RecoveryContext, RecoveryCost

__all__ = ["Cut", "Recovery", "RecoveryContext", "RecoveryCost"]
