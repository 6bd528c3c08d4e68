"""One account's share of this process: so many calls at once, so many that wait, and none while its vendor fails.

A vendor that stands still fills its own account's places and queue, and nobody else's. Of those that wait the oldest is
refused first: it has waited longest in vain, and its caller is the likeliest to have given up.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from gateway.errors import Problem, Refusal

FAILURES: Final = frozenset(
    (
        Problem.upstream_unreachable,
        Problem.upstream_tls_expired,
        Problem.upstream_tls_wrong_host,
        Problem.upstream_tls_untrusted,
        Problem.upstream_tls_failed,
        Problem.upstream_timeout,
        Problem.upstream_broken,
        Problem.upstream_unreadable,
        Problem.vendor_failed,
        Problem.vendor_throttled,
    )
)
"""What says that the vendor itself is not well; what it says of one call says nothing of the next."""
_LOOKED_AT_SECONDS: Final = 10
_PROBES: Final = 3
"""Good answers in a row after which calls are made again."""
_PAUSE_MAX_SECONDS: Final = 60.0

State = Literal["closed", "open", "half-open"]


@dataclass(slots=True)
class Breaker:
    """Stops calls while the vendor fails at least every second one, and looks by single ones whether it is well again."""

    calls_min: int
    """Calls of ten seconds before anything is judged; 0: nothing ever is."""
    pause_seconds: float
    """First pause; each that a probe ends in vain is followed by one twice as long, up to a minute."""
    now: Callable[[], float]
    """A monotonic clock in seconds."""
    changed: Callable[[State], None] = lambda _: None
    state: State = "closed"
    _until: float = 0.0
    _pause: float = 0.0
    _probing: bool = False
    _good: int = 0
    _seconds: deque[list[int]] = field(default_factory=lambda: deque(maxlen=_LOOKED_AT_SECONDS))
    """Of each second that had calls: when, how many, how many failed."""

    def ask(self) -> bool:
        """Return whether a call would be a probe. Raises: Refusal `upstream_paused`."""
        if self.state == "closed":
            return False
        now = self.now()
        if self.state == "open" and now >= self._until:
            self._turn("half-open")
            self._good = 0
        if self.state == "open" or self._probing:
            wait = max(1, math.ceil(self._until - now))
            raise Refusal(Problem.upstream_paused, retry_after_seconds=wait)
        self._probing = True
        return True

    def told(self, problem: Problem | None, *, probe: bool) -> None:
        """Learn how a call ended; None: the vendor carried it out."""
        failed = problem in FAILURES
        if probe:
            self._probed(failed)
        elif self.state == "closed" and self.calls_min:
            self._count(failed)

    def dropped(self) -> None:
        """Learn that a probe never reached the vendor."""
        self._probing = False

    def _probed(self, failed: bool) -> None:
        self._probing = False
        if self.state != "half-open":
            return
        self._good = 0 if failed else self._good + 1
        if failed:
            self._open(min(2 * self._pause, _PAUSE_MAX_SECONDS))
        elif self._good >= _PROBES:
            self._seconds.clear()
            self._turn("closed")

    def _count(self, failed: bool) -> None:
        second = int(self.now())
        if not self._seconds or self._seconds[-1][0] != second:
            self._seconds.append([second, 0, 0])
        newest = self._seconds[-1]
        newest[1] += 1
        newest[2] += failed
        if failed:
            recent = [counts for counts in self._seconds if second - counts[0] < _LOOKED_AT_SECONDS]
            calls, failures = (sum(counts[which] for counts in recent) for which in (1, 2))
            if calls >= self.calls_min and 2 * failures >= calls:
                self._open(self.pause_seconds)

    def _open(self, seconds: float) -> None:
        self._pause = seconds
        self._until = self.now() + seconds
        self._turn("open")

    def _turn(self, state: State) -> None:
        self.state = state
        self.changed(state)


@dataclass(slots=True)
class Place:
    """One call's place among those under way; to be left once."""

    _bulkhead: Bulkhead
    _probe: bool

    def told(self, problem: Problem | None) -> None:
        """Learn how one request to the vendor ended; None: it was carried out."""
        probe, self._probe = self._probe, False
        self._bulkhead.told(problem, probe=probe)

    def leave(self) -> None:
        """Let the next one in."""
        self._bulkhead.left(unused_probe=self._probe)


class Bulkhead:
    """The places of one account."""

    def __init__(self, places: int, waiting_max: int, wait_seconds: float, breaker: Breaker) -> None:
        """At most `places` calls at once and `waiting_max` that wait, none of them longer than `wait_seconds`."""
        self.breaker = breaker
        self._free = self._places = places
        self._waiting_max = waiting_max
        self._wait_seconds = wait_seconds
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def places(self) -> int:
        """How many calls may be under way at once."""
        return self._places

    @property
    def in_use(self) -> int:
        """How many calls are under way."""
        return self._places - self._free

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return len(self._waiting)

    async def enter(self) -> Place:
        """Return a place, once there is one. Raises: Refusal `upstream_paused`, `upstream_busy`."""
        probe = self.breaker.ask()
        if self._free:
            self._free -= 1
            return Place(self, probe)
        try:
            await self._wait()
        except BaseException:
            if probe:
                self.breaker.dropped()
            raise
        return Place(self, probe)

    def told(self, problem: Problem | None, *, probe: bool) -> None:
        """Learn how one request ended, and let nobody wait for a vendor that fails."""
        self.breaker.told(problem, probe=probe)
        if self.breaker.state == "open":
            while self._waiting:
                self._refuse(self._waiting.popleft(), Problem.upstream_paused)

    def left(self, *, unused_probe: bool) -> None:
        """Give a place to who has waited longest, or keep it for who comes."""
        if unused_probe:
            self.breaker.dropped()
        while self._waiting:
            first = self._waiting.popleft()
            if not first.done():
                first.set_result(None)
                return
        self._free += 1

    async def _wait(self) -> None:
        while len(self._waiting) >= self._waiting_max:
            self._refuse(self._waiting.popleft(), Problem.upstream_busy)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        timer = turn.get_loop().call_later(self._wait_seconds, self._refuse, turn, Problem.upstream_busy)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.left(unused_probe=False)
            raise
        finally:
            timer.cancel()
            # Who was given a place, or refused to make room, is not there any more.
            if turn.cancelled() or turn.exception() is not None:
                self._forget(turn)

    def _forget(self, turn: asyncio.Future[None]) -> None:
        if self._waiting and self._waiting[0] is turn:
            self._waiting.popleft()
        elif turn in self._waiting:
            self._waiting.remove(turn)

    def _refuse(self, turn: asyncio.Future[None], problem: Problem) -> None:
        if not turn.done():
            turn.set_exception(Refusal(problem, retry_after_seconds=1))
