"""Trials: one recipe, from the base model to a measured compressed one."""

from autoprune.trial.bench import Bench, Cost
from autoprune.trial.choosing import budget_of
from autoprune.trial.deploying import as_deployed, on_split
from autoprune.trial.finishing import Finished, certified, finish, quantised
from autoprune.trial.measuring import Measurement, measure, metrics_of
from autoprune.trial.recovering import restart, train_compressed, train_on
from autoprune.trial.run import Outcome, Prepared, prepare, run_trial

__all__ = [
    "Bench",
    "Cost",
    "Finished",
    "Measurement",
    "Outcome",
    "Prepared",
    "as_deployed",
    "budget_of",
    "certified",
    "finish",
    "measure",
    "metrics_of",
    "on_split",
    "prepare",
    "quantised",
    "restart",
    "run_trial",
    "train_compressed",
    "train_on",
]
