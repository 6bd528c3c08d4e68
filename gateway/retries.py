"""When a call that failed is worth another try: which failures, after what pause, and how many in all.

A retry must do no harm. Nothing is made again that may have acted and would act twice; and since a vendor that is down gets
more calls by every retry, an account's retries are a share of its calls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gateway.errors import Problem
from gateway.model import Call

_NOT_MADE: Final = frozenset((Problem.upstream_unreachable,))
_DOUBTFUL: Final = frozenset((Problem.upstream_timeout, Problem.upstream_broken))
_CALLS: Final = 10
"""That pay for one retry. Kept in calls, the balance is counted exactly."""
_CALLS_PER_SECOND: Final = 2
_SAVED_MAX: Final = 10 * _CALLS
"""Ten retries are saved in calm times for an outage, and no more."""
_PAUSE_SECONDS: Final = 0.1
_PAUSE_MAX_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Retries:
    """How the gateway tries again by itself."""

    most: int
    """Further tries of one call."""
    longest_seconds: float
    """That all tries of a call may take together."""
    jitter: Callable[[], float]
    """A random number from 0 to 1: those who failed together must not come back together."""

    def pause_seconds(self, before: int) -> float:
        """Return how long to wait before a retry; `before`: after how many. Twice as long each time, half of it by chance."""
        return min(_PAUSE_MAX_SECONDS, _PAUSE_SECONDS * 2.0**before) * (0.5 + self.jitter() / 2)


@dataclass(slots=True)
class Budget:
    """How many retries one account has left in one process: a tenth of its calls, and one in five seconds in any case."""

    spent: int = 0
    """Retries that were made."""
    _balance: float = _SAVED_MAX / 2
    _at: float | None = None

    def earn(self) -> None:
        """Count one call."""
        self._balance = min(_SAVED_MAX, self._balance + 1)

    def spend(self, now: float) -> bool:
        """Take one retry, if there is one. `now`: seconds of a monotonic clock."""
        if self._at is not None:
            self._balance = min(_SAVED_MAX, self._balance + (now - self._at) * _CALLS_PER_SECOND)
        self._at = now
        if self._balance < _CALLS:
            return False
        self._balance -= _CALLS
        self.spent += 1
        return True


def worth_another_try(problem: Problem, call: Call) -> bool:
    """Say whether a call that failed so did nothing, or does nothing more when it is made again."""
    return problem in _NOT_MADE or (call.repeatable and problem in _DOUBTFUL)
