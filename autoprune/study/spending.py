"""What a study has spent of its budget, over all launches, and whether that is all."""

from __future__ import annotations

from collections.abc import Callable

from autoprune.study.config import BudgetSpec


class Spending:
    """Seconds of the study and of its workers, and when its front moved last."""

    def __init__(self, budget: BudgetSpec, clock: Callable[[], float]) -> None:
        self._budget, self._clock, self._began = budget, clock, clock()
        self._before = self._of_workers = 0.0
        self.front_moved_at = 0.0

    @property
    def elapsed(self) -> float:
        """Seconds that the study has run, those of earlier launches included."""
        return self._before + self._clock() - self._began

    def work(self, seconds: float) -> None:
        """Count the time of a worker."""
        self._of_workers += seconds

    def ran_until(self, seconds: float) -> None:
        """Note that an earlier launch was at work at this second of the study."""
        self._before = max(self._before, seconds)

    def time_is_up(self) -> bool:
        """Tell whether the study or its workers have had their time."""
        budget = self._budget
        over = budget.time is not None and self.elapsed >= budget.time
        return over or (budget.worker_time is not None and self._of_workers >= budget.worker_time)

    def patience_is_over(self, unmoved: int) -> bool:
        """Tell whether the front has stood still for too long, `unmoved` trials by now."""
        trials, seconds = self._budget.patience, self._budget.patience_time
        if trials is not None and unmoved >= trials:
            return True
        return seconds is not None and self.elapsed - self.front_moved_at >= seconds
