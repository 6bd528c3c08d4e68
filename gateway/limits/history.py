"""What the trail tells of limits: how they were changed, and whom each refused, or would have."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from gateway import audit
from gateway.config import AT_ONCE
from gateway.trail.export.reading import usual
from gateway.trail.search import Query, Row, Trail


@dataclass(slots=True)
class Read:
    """What was read, newest first, as far as there was time for it."""

    rows: list[Row] = field(default_factory=list)
    whole: bool = True
    """Whether it is all that was asked for."""


async def read_changes(trail: Trail, seconds: float | None = None, policy: str | None = None) -> Read:
    """Return the changes of limits that were made, of one policy or of all; `seconds`: that this may take.

    Raises: OSError, BrokenIndex.
    """
    # Those first that say what was not made: without them something would be told that never was.
    aborts = await _read(trail.newest_first(Query(stage="abort")), _within(seconds, 0.5))
    changes = await _read(trail.newest_first(Query(stage="change")), _within(seconds, 0.5))
    not_made = {row.get("intent") for row in aborts.rows if row.get("change")}
    rows = [
        row
        for row in changes.rows
        if row.get("change", "").startswith(("limit.", "drill.")) and f"{row['writer']}-{row['seq']}" not in not_made
    ]
    return Read([row for row in rows if policy in (None, row.get("policy"))], aborts.whole and changes.whole)


@dataclass(slots=True)
class Refused:
    """What became of the calls of one service under one policy."""

    service: str
    calls: int = 0
    refused: int = 0
    would_be_refused: int = 0
    """By the policy in shadow."""


async def read_refusals(trail: Trail, policy: str, since: float, records_max: int, seconds: float) -> tuple[list[Refused], bool]:
    """Return what one policy said to the calls of each service, most refused first, and whether all records were read.

    `since`: Unix seconds; the newest `records_max` are read. Raises: OSError, BrokenIndex.
    """
    read = await _read(trail.newest_first(Query(since=since)), seconds, records_max)
    found: dict[str, Refused] = {}
    for row in read.rows:
        if row["stage"] not in ("outcome", "refusal"):
            continue
        told = [one for one in audit.read_limits(row.get("limits") or "") if one.policy in (policy, policy + AT_ONCE)]
        if not told:
            continue
        name = row.get("service") or "nobody"
        service = found.setdefault(name, Refused(name))
        count = row.get("count", 1)
        service.calls += count
        service.refused += count * any(one.retry_after_seconds is not None and not one.shadow for one in told)
        service.would_be_refused += count * any(one.retry_after_seconds is not None and one.shadow for one in told)
    return sorted(found.values(), key=lambda one: (-one.refused - one.would_be_refused, -one.calls)), read.whole


async def _read(rows: AsyncIterator[Row], seconds: float | None, rows_max: int | None = None) -> Read:
    read, begun = Read(), time.monotonic()
    try:
        async with asyncio.timeout(seconds):
            async for row in rows:
                # What is sealed is read without a pause in which the time-out could come.
                late = seconds is not None and time.monotonic() - begun > seconds
                if late or len(read.rows) == rows_max:
                    read.whole = False
                    break
                if "at" in (told := usual(row)):
                    read.rows.append(told)
    except TimeoutError:
        read.whole = False
    return read


def _within(seconds: float | None, share: float) -> float | None:
    return None if seconds is None else seconds * share
