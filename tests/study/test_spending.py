from __future__ import annotations

from autoprune.study.config import BudgetSpec
from autoprune.study.spending import Spending


def test_time_goes_on_over_launches() -> None:
    now = [100.0]
    spent = Spending(BudgetSpec(time=60.0), lambda: now[0])
    spent.ran_until(40.0)
    spent.ran_until(25.0)
    now[0] = 119.0
    assert spent.elapsed == 59.0
    assert not spent.time_is_up()
    now[0] = 120.0
    assert spent.time_is_up()


def test_time_of_workers_is_counted_apart() -> None:
    spent = Spending(BudgetSpec(worker_time=60.0), lambda: 0.0)
    spent.work(59.0)
    assert not spent.time_is_up()
    spent.work(1.0)
    assert spent.time_is_up()


def test_patience_in_trials_and_in_seconds() -> None:
    now = [0.0]
    spent = Spending(BudgetSpec(patience=3, patience_time=10.0), lambda: now[0])
    assert [spent.patience_is_over(unmoved) for unmoved in (0, 2, 3)] == [False, False, True]
    now[0] = 12.0
    spent.front_moved_at = 3.0
    assert not spent.patience_is_over(0)
    now[0] = 13.0
    assert spent.patience_is_over(0)


def test_without_limits_it_never_ends() -> None:
    spent = Spending(BudgetSpec(), lambda: 1e9)
    assert not spent.time_is_up()
    assert not spent.patience_is_over(10_000)
