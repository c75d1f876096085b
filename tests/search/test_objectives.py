import math

import pytest

from autoprune.errors import Failure, LossNotFinite
from autoprune.search.objectives import directions, values

METRICS = {"accuracy": 0.9, "flops_fraction": 0.5, "params_fraction": 0.6, "latency_ms": 3.0}


def test_directions_and_values_go_together():
    names = ["params", "accuracy", "latency", "flops"]
    assert directions(names) == ["minimize", "maximize", "minimize", "minimize"]
    assert values(names, METRICS) == [0.6, 0.9, 3.0, 0.5]


def test_a_missing_metric_is_named():
    with pytest.raises(Failure, match="'latency' needs the metric 'latency_ms'"):
        values(["latency"], {"accuracy": 0.9})


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_a_failure(bad):
    with pytest.raises(LossNotFinite):
        values(["accuracy"], {"accuracy": bad})
