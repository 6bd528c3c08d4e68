"""What became of calls lately, counted by all processes of an account: for pages that tell how it is, however many calls.

Proof is what the trail tells; these are counts, as good as those of metrics. What a process counted that is killed before it is
written, within a second, or while Redis is away, is missing, and all go when Redis forgets.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter
from contextlib import suppress
from typing import Any, Final, Literal

import msgspec
from redis.exceptions import ResponseError

from gateway.audit import Record
from gateway.counts import Services
from gateway.errors import Problem
from gateway.ledger.batch import LedgerDown
from gateway.ledger.buckets import Buckets, Submit
from gateway.ledger.connect import pairs
from gateway.ledger.names import Names
from gateway.model import RESULTS, Result
from gateway.slots import is_rejection

Span = Literal["hour", "day"]
_SPANS: Final[dict[Span, tuple[int, int]]] = {"hour": (60, 60), "day": (48, 1800)}
"""How many buckets a page is about, and the seconds of each."""
_WITHIN_MS: Final = tuple(round(10 ** (step / 12), 2) for step in range(61))
"""1 ms to 100 s: what is told of a duration between these is never less than it was, and 22 % more at most."""
_BOUNDS: Final = frozenset((None, *_WITHIN_MS))
_COUNT_MAX: Final = 1 << 63
TRIED_MAX: Final = 32
"""Versions of credentials of which it is kept when they were tried last."""


class Ended(msgspec.Struct, array_like=True, frozen=True, tag="end"):
    """A request, by how it ended."""

    service: str | None
    """None: nobody that is known; `other`: one beyond the first 100."""
    result: Result
    problem: str | None
    origin: str | None
    denied: bool
    """Whether by a decision of the gateway's own."""
    degraded: bool
    """Whether it was decided without Redis."""
    within_ms: float | None
    """What it took at most; None: the vendor was not called."""


class Tried(msgspec.Struct, array_like=True, frozen=True, tag="try"):
    """A try with a credential."""

    slot: str
    rejected: bool


class Outage(msgspec.Struct, array_like=True, frozen=True, tag="outage"):
    """One process was without Redis; counted again and again while it is."""


Event = Ended | Tried | Outage
_read = msgspec.json.Decoder(Event).decode


class Ends:
    """What one process counts of an account."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._spans = tuple(_buckets(names, span) for span in _SPANS)
        self._services = Services()
        self._minute = 0
        self._fresh: Counter[tuple[object, ...]] = Counter()
        """Events of that minute, as they are kept: to make a struct of each would cost a call as much as all else here."""
        self._tried: dict[str, tuple[float, str]] = {}

    def ended(self, record: Record, at: float) -> None:
        """Count a request by the last record of it. `at`: Unix seconds."""
        result = record.result if record.result in RESULTS else "unknown"
        service, denied = self._services.told(record.service), record.decision == "denied"
        took = _within(record.duration_ms) if record.stage == "outcome" and record.duration_ms is not None else None
        self._count(at, ("end", service, result, record.problem, record.origin, denied, record.degraded, took))

    def tried(self, record: Record, at: float) -> None:
        """Count a try by its outcome. `at`: Unix seconds."""
        if record.slot is not None:
            problem = Problem.__members__.get(record.problem) if record.problem is not None else None
            # Of the second of two credentials that were both rejected the caller is told so.
            rejected = is_rejection(problem) or problem is Problem.upstream_credentials_rejected
            self._count(at, ("try", record.slot, rejected))
            self._tried[record.slot] = at, record.credential or ""

    def without_redis(self, at: float) -> None:
        """Count an outage, where it begins and while it lasts. `at`: Unix seconds."""
        self._count(at, ("outage",))

    async def write(self, submit: Submit) -> bool:
        """Add some of what was counted to what Redis has; say whether it took all of that, and there is more."""
        self._gather()
        _, *more = await asyncio.gather(self._write_tried(submit), *(buckets.write(submit) for buckets in self._spans))
        return any(more)

    async def _write_tried(self, submit: Submit) -> None:
        if not self._tried:
            return
        tried, self._tried = self._tried, {}
        words = [word for slot, (at, version) in tried.items() for word in (f"{at:.3f}", f"{slot} {version}")]
        try:
            # Who was without Redis may bring what is older than what others brought meanwhile.
            await submit("ZADD", self._names.tried, "GT", *words)
            await submit("ZREMRANGEBYRANK", self._names.tried, 0, -1 - TRIED_MAX)
        except (LedgerDown, ResponseError):
            self._tried = tried | self._tried

    def _count(self, at: float, event: tuple[object, ...]) -> None:
        minute = int(at) // 60
        if minute != self._minute:
            self._gather()
            self._minute = minute
        self._fresh[event] += 1

    def _gather(self) -> None:
        for event, count in self._fresh.items():
            for buckets in self._spans:
                buckets.add(self._minute * 60, event, count)
        self._fresh.clear()


async def read_ends(client: Any, account: str, span: Span, now: float) -> dict[int, Counter[Event]]:
    """Return what was counted in each bucket of a span up to now, oldest first, by the Unix second in which it begins.

    Raises: redis-py's errors.
    """
    count, step = _SPANS[span]
    names = _buckets(Names(account), span).names(now, (count - 1) * step)
    async with client.pipeline(transaction=False) as pipe:
        for name in names.values():
            pipe.hgetall(name)
        kept = await pipe.execute()
    found = {}
    for at, raw in zip(names, kept, strict=True):
        found[at] = _read_bucket(raw)
        await asyncio.sleep(0)  # There may be much in each, and others wait for their pages.
    return found


def _read_bucket(raw: Any) -> Counter[Event]:
    found = Counter[Event]()
    for name, count in pairs(raw):
        # Whoever can write to Redis may have written something else.
        with suppress(msgspec.MsgspecError, UnicodeDecodeError, ValueError):
            event, times = _read(name), int(count)
            if 0 < times < _COUNT_MAX and getattr(event, "within_ms", None) in _BOUNDS:
                found[event] += times
    return found


def _buckets(names: Names, span: Span) -> Buckets:
    count, step = _SPANS[span]
    return Buckets(f"{names.ends}{span}:", step, count * step, msgspec.json.encode)


def _within(milliseconds: float) -> float:
    return _WITHIN_MS[min(bisect_left(_WITHIN_MS, milliseconds), len(_WITHIN_MS) - 1)]
