"""Finds records in the live streams: by number, service, key, decision, code, time and request id, freely combined."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from gateway.audit import rfc3339
from gateway.model import NUMBER_FIELDS

_PAGE: Final = 1000
_FOLLOW_EVERY_SECONDS: Final = 0.1

Row = dict[str, Any]
_IN_EVERY: Final[Mapping[str, type]] = {"stage": str, "writer": str, "seq": int, "at": str, "request_id": str, "decision": str}
"""What every record has."""


@dataclass(frozen=True, slots=True)
class Query:
    """What to look for; None: anything. All that is given has to hold."""

    pseudonym: str | None = None
    """Of the number, under the current pseudonym key; found in any of m1, m2 and mask."""
    stage: str | None = None
    """`intent`, `outcome`, `refusal` or `change`."""
    service: str | None = None
    key_id: str | None = None
    source: str | None = None
    decision: str | None = None
    """`allowed` or `denied`."""
    result: str | None = None
    code: int | None = None
    problem: str | None = None
    request_id: str | None = None
    since: float | None = None
    """Unix seconds, inclusive."""
    until: float | None = None
    """Unix seconds, inclusive."""

    def matches(self, row: Row) -> bool:
        """Say whether one record holds all that is asked."""
        if self.pseudonym is not None and self.pseudonym not in (row.get(name) for name in NUMBER_FIELDS):
            return False
        if self.since is not None and row["at"] < rfc3339(self.since):
            return False
        if self.until is not None and row["at"] > rfc3339(self.until):
            return False
        wanted = (
            ("stage", self.stage),
            ("service", self.service),
            ("key_id", self.key_id),
            ("source", self.source),
            ("decision", self.decision),
            ("code", self.code),
            ("result", self.result),
            ("problem", self.problem),
            ("request_id", self.request_id),
        )
        return all(value is None or row.get(name) == value for name, value in wanted)


class Trail:
    """The audit streams of some accounts as one, each read in order and without what was written twice."""

    def __init__(self, client: Any, keys: Sequence[str]) -> None:
        """`keys` are the streams' names in Redis; on a cluster they may lie in different slots."""
        self._client = client
        self._keys = keys

    async def search(self, query: Query) -> AsyncIterator[Row]:
        """Yield matching records, oldest first, each once."""
        streams = [self._records(key, query) for key in self._keys]
        heads = {number: row for number, stream in enumerate(streams) if (row := await anext(stream, None)) is not None}
        while heads:
            oldest = min(heads, key=lambda number: heads[number]["at"])
            yield heads.pop(oldest)
            if (row := await anext(streams[oldest], None)) is not None:
                heads[oldest] = row

    async def newest(self, query: Query, count: int) -> tuple[list[Row], dict[str, bytes]]:
        """Return the newest matching records, oldest first, and for each stream the id to follow from."""
        rows: list[Row] = []
        follow_from = {}
        for key in self._keys:
            found, follow_from[key] = await self._newest_of(key, query, count)
            rows.extend(found)
        rows.sort(key=lambda row: row["at"])
        return rows[-count:], follow_from

    async def follow(self, query: Query, last: Mapping[str, bytes]) -> AsyncIterator[Row]:
        """Yield matching records for ever, as they are written after the given stream ids."""
        reached = dict(last)
        while True:
            for key in self._keys:
                for identity, fields in await self._client.xrange(key, b"(" + reached[key], "+", count=_PAGE):
                    reached[key] = identity
                    row = decode(_encoded(fields))
                    if row is not None and query.matches(row):
                        yield row
            await asyncio.sleep(_FOLLOW_EVERY_SECONDS)

    async def pages(self, key: str, since: float | None, until: float | None = None) -> AsyncIterator[list[bytes]]:
        """Yield the records of one stream as they are, many at a time, written from `since` to `until` (Unix seconds)."""
        # A record is never in the stream before its own time, but the journal may bring it much later.
        first: str | bytes = "-" if since is None else f"{int(since * 1000)}-0"
        last = "+" if until is None else f"{int(until * 1000)}-0"
        while page := await self._client.xrange(key, first, last, count=_PAGE):
            yield [_encoded(fields) for _, fields in page]
            first = b"(" + page[-1][0]

    async def _records(self, key: str, query: Query) -> AsyncIterator[Row]:
        seen = _Seen()
        async for page in self.pages(key, query.since):
            for encoded in page:
                row = decode(encoded)
                if row is not None and seen.new(row) and query.matches(row):
                    yield row

    async def _newest_of(self, key: str, query: Query, count: int) -> tuple[list[Row], bytes]:
        rows: list[Row] = []
        last = b"+"
        newest = b"0-0"
        while len(rows) < count and (page := await self._client.xrevrange(key, last, "-", count=_PAGE)):
            newest = max(newest, page[0][0], key=_order)
            found = (decode(_encoded(fields)) for _, fields in page)
            rows.extend(row for row in found if row is not None and query.matches(row))
            last = b"(" + page[-1][0]
        unique = {(row["writer"], row["seq"]): row for row in reversed(rows[:count])}
        return list(unique.values()), newest


class _Seen:
    """Which records came by. Seldom out of order: what a journal carried over."""

    def __init__(self) -> None:
        self._ids: set[tuple[str, int]] = set()

    def new(self, row: Row) -> bool:
        identity = (row["writer"], row["seq"])
        if identity in self._ids:
            return False
        self._ids.add(identity)
        return True


def decode(encoded: bytes) -> Row | None:
    """Return a record; None for what is none: one odd entry must not hide all others."""
    try:
        row: Row = msgspec.json.decode(encoded, type=Row)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    whole = all(isinstance(row.get(name), kind) for name, kind in _IN_EVERY.items())
    return row if whole else None


def _encoded(fields: Mapping[bytes, bytes]) -> bytes:
    return fields.get(b"r", b"")


def _order(identity: bytes) -> tuple[int, int]:
    millis, _, number = identity.partition(b"-")
    return int(millis), int(number)
