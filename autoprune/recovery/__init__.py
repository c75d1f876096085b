"""Recovery wins back accuracy after a cut."""

from autoprune.recovery._base import Recovery, RecoveryContext, RecoveryCost

__all__ = ["Recovery", "RecoveryContext", "RecoveryCost"]
