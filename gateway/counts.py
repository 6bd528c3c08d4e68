"""What one process counts while it serves: numbers in lists and tables, put together only when somebody asks for them.

prometheus_client's own counters take a lock and look labels up at each step, 2 µs each; these cost a call about as much in all.
Nothing a caller writes becomes a label: a service has proved itself, the rest is of our own tables.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from gateway.audit import Record
from gateway.calling import Observer, Upstream
from gateway.durations import Durations
from gateway.errors import Refusal
from gateway.model import OPERATIONS, RESULTS, UpstreamAnswer, UpstreamRequest

SERVICES_MAX: Final = 100
"""Services told by name; the rest are `other`."""
OTHER: Final = "other"
NONE: Final = "none"
BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Seconds by which durations of requests are told apart."""
_ENDS_MAX: Final = 10_000
_STATUSES: Final = ("0xx", "1xx", "2xx", "3xx", "4xx", "5xx")

Labels = tuple[str, ...]
"""Of how a request ended: account, service, operation, decision, result, status, problem."""


@dataclass(slots=True)
class _Ended:
    durations: Durations
    count: int = 0


class Services:
    """Tells services by name, as many as may be told."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def told(self, name: str | None) -> str | None:
        """Return a name, or `other` for one beyond those that are told."""
        if name is None or name in self._told:
            return name
        if len(self._told) >= SERVICES_MAX:
            return OTHER
        self._told.add(name)
        return name


class Requests:
    """The requests of one process: those under way, and how the others ended."""

    def __init__(self) -> None:
        self.under_way = 0
        self.durations = {result: Durations(BOUNDS) for result in RESULTS}
        self.unforeseen = 0
        """Errors that nobody foresaw."""
        self.alarms: Counter[tuple[str, str]] = Counter()
        """By account and event, what somebody should have looked at."""
        self._ended: dict[Labels, _Ended] = {}
        self._by_record: dict[tuple[str | int | None, ...], _Ended] = {}
        self._services = Services()

    def count(self, record: Record) -> None:
        """Count a request by the last record of it."""
        key = (
            record.account,
            record.service,
            record.operation,
            record.decision,
            record.result,
            record.status,
            record.problem,
        )
        ended = self._by_record.get(key) or self._first(record, key)
        ended.count += 1
        ended.durations.add((record.duration_ms or 0.0) / 1000)

    def ended(self) -> list[tuple[Labels, int]]:
        """Return how many ended how."""
        return [(labels, ended.count) for labels, ended in self._ended.items()]

    def _first(self, record: Record, key: tuple[str | int | None, ...]) -> _Ended:
        result = record.result if record.result in self.durations else "unknown"
        operation = record.operation if record.operation in OPERATIONS else NONE
        labels = (
            record.account,
            self._services.told(record.service) or NONE,
            operation,
            record.decision or NONE,
            result,
            str(record.status or 0),
            record.problem or NONE,
        )
        ended = self._ended.setdefault(labels, _Ended(self.durations[result]))
        if len(self._by_record) < _ENDS_MAX:
            self._by_record[key] = ended
        return ended


@dataclass(frozen=True, slots=True)
class Counted:
    """Counts what it tells an observer."""

    observer: Observer
    requests: Requests
    by_account: Mapping[str, Callable[[Record], None]]
    """Told of the last record of each of an account's requests."""

    def recorded(self, record: Record) -> None:
        """Pass on a record."""
        self.observer.recorded(record)

    def ended(self, record: Record) -> None:
        """Count a request, and pass on its last record."""
        self.requests.count(record)
        self.by_account[record.account](record)
        self.observer.ended(record)

    def alarm(self, event: str, **facts: str) -> None:
        """Count and pass on what somebody should look at."""
        self.requests.alarms[facts.get("account", NONE), event] += 1
        self.observer.alarm(event, **facts)

    def failed(self, request_id: str, error: Exception) -> None:
        """Count and pass on an error nobody foresaw."""
        self.requests.unforeseen += 1
        self.observer.failed(request_id, error)


class Timed:
    """An account's upstream, with how long it took and what came of it."""

    def __init__(self, upstream: Upstream, now: Callable[[], float]) -> None:
        """`now` is a monotonic clock in seconds."""
        self._upstream = upstream
        self._now = now
        self.durations = Durations(BOUNDS)
        self.results: Counter[str] = Counter()
        """Requests by `2xx` and so on, or by the problem of one that got no answer; `cancelled` where nobody waited for it."""

    async def forward(self, request: UpstreamRequest, within_seconds: float = math.inf) -> UpstreamAnswer:
        """Send one request. Raises: what the upstream raises."""
        began, result = self._now(), "cancelled"
        try:
            answer = await self._upstream.forward(request, within_seconds)
            result = _STATUSES[answer.status // 100 if answer.status < 600 else 0]
        except Refusal as refusal:
            result = refusal.problem.slug
            raise
        finally:
            self.results[result] += 1
            self.durations.add(self._now() - began)
        return answer
