"""What limits would have refused: the audit history, refused calls included, through the limiter that answers live calls.

Every call that reached the limits then is put to them again, in the order of arrival, by the same charges and the same
arithmetic. Memory holds what the limits keep now, not the history: of a million records as little as of a thousand.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from gateway.admission import Policies
from gateway.audit import Head
from gateway.limiter import Limiter, Touched
from gateway.model import NUMBER_FIELDS, Charge, Limit
from gateway.proving import PROVING

HOUR_US: Final = 3_600_000_000
_HORIZON_US: Final = 10_000_000
"""How much later than its own time a record may stand in the stream and still be taken in order."""
_NO_LIMIT: Final = frozenset(
    (
        "signature_replayed",
        "deadline_passed",
        "answer_replayed",
        "idempotency_running",
        "idempotency_unknown",
        "idempotency_mismatch",
    )
)
"""What a refusal says of a call that was put to no limit."""
_REMEMBERED: Final = 20_000
"""Records, by which one that was written twice is known."""
_PRUNE_AT: Final = 20_000


class Demand(Head, kw_only=True):
    """What a record tells of the demand for calls."""

    service: str | None = None
    operation: str | None = None
    m1: str | None = None
    m2: str | None = None
    mask: str | None = None
    pseudonym_key: str | None = None
    attempt: int = 1
    problem: str | None = None

    @property
    def reached_limits(self) -> bool:
        """Whether it stands for a call that was put to the limits, or would have been but for an outage."""
        return self.stage == "intent" or (
            self.stage == "refusal" and self.pseudonym_key is not None and self.problem not in _NO_LIMIT
        )


_read = msgspec.json.Decoder(Demand).decode


class _Waiting:
    """Calls that are told once nothing that came before them can follow any more."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Demand]] = []
        self._by_id: dict[str, Demand] = {}
        self._number = 0
        self.reached = 0
        """Microsecond of the last that was told."""

    def push(self, at: int, demand: Demand) -> None:
        self._number += 1
        heapq.heappush(self._heap, (at, self._number, demand))
        self._by_id[demand.id] = demand

    def close(self, end: Demand) -> None:
        """Note how a call ended; one that was put to no limit, or is put to them again, is not told."""
        found = self._by_id.get(end.intent or "")
        if found is None:
            return
        if end.problem == "decided_anew" or (end.stage == "refusal" and end.problem in _NO_LIMIT):
            del self._by_id[found.id]
        elif end.stage in ("refusal", "abort"):
            found.problem = end.problem

    def until(self, before: float) -> Iterator[tuple[int, Demand]]:
        while self._heap and self._heap[0][0] < before:
            self.reached, _, demand = heapq.heappop(self._heap)
            if self._by_id.pop(demand.id, None) is not None:
                yield self.reached, demand


async def in_order(pages: AsyncIterator[list[bytes]], unknown: Counter[str]) -> AsyncIterator[tuple[int, Demand]]:
    """Yield each demand once, with its microsecond, in the order of arrival; what came too late is counted in `unknown`."""
    waiting = _Waiting()
    seen: OrderedDict[str, None] = OrderedDict()
    newest = 0
    async for page in pages:
        for encoded in page:
            demand = _demand(encoded)
            if demand is None:
                unknown["unreadable"] += 1
                continue
            waiting.close(demand)
            # What closes an intent tells of the same call.
            if not demand.reached_limits or demand.id in seen or demand.intent in seen:
                continue
            seen[demand.id] = None
            if len(seen) > _REMEMBERED:
                seen.popitem(last=False)
            at = demand.at_us
            if at < waiting.reached:
                unknown["late"] += 1
                continue
            newest = max(newest, at)
            waiting.push(at, demand)
        for told in waiting.until(newest - _HORIZON_US):
            yield told
    for told in waiting.until(math.inf):
        yield told


def _demand(encoded: bytes) -> Demand | None:
    try:
        demand = _read(encoded)
        return demand if demand.at_us >= 0 else None
    except (msgspec.MsgspecError, ValueError):
        return None


class Smallest:
    """The smallest limit that would have refused one subject nothing: the burst at its rate, and the rate at its burst."""

    def __init__(self, interval_us: int, burst: int, *, rates: bool) -> None:
        """`rates`: whether the rate is sought too, which costs memory where the demand has many bends."""
        self._interval, self._burst, self._rates = interval_us, burst, rates
        self._time = 0
        self._count = 0
        self._hull: list[tuple[int, int]] = []
        self._slopes: list[float] = []
        self.burst = 0
        """Units at once that suffice at the given rate."""
        self.interval_us: int | None = None
        """The longest interval that suffices at the given burst; 0: none does; None: any does."""

    def add(self, now: int, units: int) -> None:
        """Take so many units at once, at a microsecond not before the last."""
        self._time = max(self._time, now) + units * self._interval
        self.burst = max(self.burst, -((now - self._time) // self._interval))
        if self._rates:
            self._add_to_hull(now)
            self._count += units
            self._seek(now)

    @property
    def seeks_rate(self) -> bool:
        """Whether the rate is sought too."""
        return self._rates

    def matters(self, now: int) -> bool:
        """Say whether what is kept can still change what is found."""
        return self._rates or self._time > now

    def _add_to_hull(self, now: int) -> None:
        """Keep the lower convex hull of (instant, units before it): only there can the steepest window begin."""
        if self._hull and self._hull[-1][0] == now:
            return  # At one instant the earlier begins the longer window.
        point = (now, self._count)
        while len(self._hull) > 1 and _slope(self._hull[-1], point) <= self._slopes[-1]:
            self._hull.pop()
            self._slopes.pop()
        if self._hull:
            self._slopes.append(_slope(self._hull[-1], point))
        self._hull.append(point)

    def _seek(self, now: int) -> None:
        """Note the window up to now that needs the shortest interval: beyond the burst, units ÷ time is largest there."""
        target = (now, self._count - self._burst)
        if target[1] <= 0:
            return
        # The slope to the target rises along the hull, then falls: up to where the hull itself is as steep.
        low, high = 0, len(self._hull) - 1
        while low < high:
            middle = (low + high) // 2
            if _steeper(self._hull[middle + 1], self._hull[middle], target):
                low = middle + 1
            else:
                high = middle
        at, before = self._hull[low]
        beyond = target[1] - before
        if beyond > 0:
            needed = (now - at) // beyond
            self.interval_us = needed if self.interval_us is None else min(self.interval_us, needed)


def _slope(a: tuple[int, int], b: tuple[int, int]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])


def _steeper(a: tuple[int, int], b: tuple[int, int], target: tuple[int, int]) -> bool:
    """Say whether the way to the target is steeper from `a` than from `b`; straight up is steepest."""
    rise_a, run_a, rise_b, run_b = target[1] - a[1], target[0] - a[0], target[1] - b[1], target[0] - b[0]
    return rise_a * run_b > rise_b * run_a


@dataclass(slots=True)
class Tally:
    """What became, and would have become, of some calls."""

    calls: int = 0
    refused_then: int = 0
    refused: int = 0

    def add(self, other: Tally) -> None:
        """Count other calls too."""
        self.calls += other.calls
        self.refused_then += other.refused_then
        self.refused += other.refused


@dataclass(slots=True)
class Replay:
    """Puts the demand of one account to some policies."""

    policies: Policies
    service: str | None = None
    """Whose calls are told; None: everybody's."""
    step_us: int = HOUR_US
    """Length of the steps in which calls are tallied."""
    limiter: Limiter = field(default_factory=Limiter)
    tallies: dict[tuple[str, int], Tally] = field(default_factory=dict)
    """By service and the beginning of the step, in microseconds since 1970."""
    by_policy: Counter[tuple[str, bool]] = field(default_factory=Counter)
    """Would-be refusals by policy, and whether it is in shadow."""
    smallest: dict[tuple[str, str], Smallest] = field(default_factory=dict)
    """By policy and key; of those that count by number, as long as it matters."""
    bursts: dict[tuple[str, str], int] = field(default_factory=dict)
    """The burst that refuses nothing, by policy and service."""
    limits: dict[str, Limit] = field(default_factory=dict)
    """That were tried, by policy."""
    pseudonym_keys: set[str] = field(default_factory=set)
    first: int = 0
    """Microsecond of the first call; 0: there was none."""
    last: int = 0
    _prune_at: int = _PRUNE_AT
    _touched: Touched = field(default_factory=Touched)
    """As a limit that refuses nothing would have it: the one that is tried forgets whom it refused."""

    def put(self, now: int, demand: Demand) -> None:
        """Put one call to the limits."""
        self.first, self.last = self.first or now, now
        service = demand.service or "nobody"
        if demand.attempt > 1 or demand.key_id == PROVING:
            charges = self.policies.draw_again(service, demand.operation or "")
        else:
            numbers: dict[str, str] = {}
            for name in NUMBER_FIELDS:
                pseudonym = getattr(demand, name)
                if pseudonym is not None:
                    numbers.setdefault(pseudonym, name)
            charges = self.policies.draw(service, demand.operation or "", numbers)
            if demand.pseudonym_key:
                self.pseudonym_keys.add(demand.pseudonym_key)
        charges = tuple(charge for charge in charges if charge.limit.interval_us)
        told = self.service is None or service == self.service
        if told:
            for charge in charges:
                self._measure(charge, service, now)
        found = self.limiter.decide(charges, now, "")
        if not told:
            return
        tally = self.tallies.setdefault((service, now // self.step_us * self.step_us), Tally())
        tally.calls += 1
        tally.refused_then += demand.problem == "quota_exceeded"
        tally.refused += bool(found.refused)
        for meter in (*found.refused, *found.shadow_refused):
            self.by_policy[meter.limit.policy, meter.limit.shadow] += 1

    def _measure(self, charge: Charge, service: str, now: int) -> None:
        limit = charge.limit
        self.limits[limit.policy] = limit
        units = 1 if charge.touched is None else self._touched.touch(charge.touched, now, limit.life_ms)
        if not units:
            return
        where = (limit.policy, charge.key)
        smallest = self.smallest.get(where)
        if smallest is None:
            smallest = self.smallest[where] = Smallest(limit.interval_us, limit.burst, rates=not charge.field)
        smallest.add(now, units)
        of = (limit.policy, service)
        self.bursts[of] = max(self.bursts.get(of, 0), smallest.burst)
        if len(self.smallest) > self._prune_at:
            # Of a number whose limit is whole again nothing more is to be learnt than its burst, which is noted.
            self.smallest = {key: one for key, one in self.smallest.items() if one.matters(now)}
            self._prune_at = max(_PRUNE_AT, 2 * len(self.smallest))


def over_time(tallies: Mapping[tuple[str, int], Tally], step_us: int = HOUR_US) -> Iterator[tuple[int, Tally]]:
    """Yield every step from the first to the last with what became of its calls, empty ones too."""
    merged = {step: tally for (_, step), tally in coarser(tallies, step_us, together=True).items()}
    for step in range(min(merged), max(merged) + 1, step_us) if merged else ():
        yield step, merged.get(step, Tally())


def coarser(tallies: Mapping[tuple[str, int], Tally], step_us: int, *, together: bool = False) -> dict[tuple[str, int], Tally]:
    """Return tallies in longer steps, each service's apart, or under no name where they are taken together."""
    merged: dict[tuple[str, int], Tally] = {}
    for (service, step), tally in tallies.items():
        merged.setdefault(("" if together else service, step // step_us * step_us), Tally()).add(tally)
    return merged


def smallest_rate(interval_us: int | None, window_seconds: int) -> int | None:
    """Return the least units a window whose interval is as short as that; 0: one unit is enough; None: no rate is."""
    if interval_us is None:
        return 1
    if interval_us == 0:
        return None
    return -(-window_seconds * 1_000_000 // interval_us)
