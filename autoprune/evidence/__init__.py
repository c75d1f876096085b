"""Evidence: what criteria and recoveries look at. Gathered once per model, cached, shared by all trials."""

from autoprune.evidence.kinds import OF_A_RECIPE, Evidence, Source
from autoprune.evidence.producers import mean_of_layers, mean_over_producers, producing_places
from autoprune.evidence.propagation import Sweep
from autoprune.evidence.store import ModelEvidence

__all__ = [
    "OF_A_RECIPE",
    "Evidence",
    "ModelEvidence",
    "Source",
    "Sweep",
    "mean_of_layers",
    "mean_over_producers",
    "producing_places",
]
