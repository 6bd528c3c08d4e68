"""Finds records in the live stream: by number, service, key, decision, code, time and request id, freely combined."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from gateway.audit import rfc3339

_PAGE: Final = 1000
NUMBER_FIELDS: Final = ("m1", "m2", "mask")

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Query:
    """What to look for; None: anything. All that is given has to hold."""

    pseudonym: str | None = None
    """Of the number, under the current pseudonym key; found in any of m1, m2 and mask."""
    service: str | None = None
    key_id: str | None = None
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
            ("service", self.service),
            ("key_id", self.key_id),
            ("decision", self.decision),
            ("code", self.code),
            ("result", self.result),
            ("problem", self.problem),
            ("request_id", self.request_id),
        )
        return all(value is None or row.get(name) == value for name, value in wanted)


class Stream:
    """The audit stream of one vendor account, read in order and without what was written twice."""

    def __init__(self, client: Any, key: str) -> None:
        self._client = client
        self._key = key

    async def search(self, query: Query) -> AsyncIterator[Row]:
        """Yield matching records, oldest first, each once."""
        # A record is never in the stream before its own time, but the journal may bring it much later.
        first = "-" if query.since is None else f"{int(query.since * 1000)}-0"
        seen = _Seen()
        while page := await self._client.xrange(self._key, first, "+", count=_PAGE):
            for _, fields in page:
                row = decode(fields)
                if seen.new(row) and query.matches(row):
                    yield row
            first = b"(" + page[-1][0]

    async def follow(self, query: Query, last: bytes, stopped: Callable[[], bool]) -> AsyncIterator[Row]:
        """Yield matching records as they are written after stream id `last`."""
        while not stopped():
            answer = await self._client.xread({self._key: last}, count=_PAGE, block=100)
            for _, page in answer.items() if isinstance(answer, dict) else answer or []:
                entries = page[0] if page and isinstance(page[0], list) else page
                for identity, fields in entries:
                    last = identity
                    row = decode(fields)
                    if query.matches(row):
                        yield row

    async def newest(self, query: Query, count: int) -> tuple[list[Row], bytes]:
        """Return the newest matching records, oldest first, and the stream id to follow from."""
        rows: list[Row] = []
        last = b"+"
        newest = b"0-0"
        while len(rows) < count and (page := await self._client.xrevrange(self._key, last, "-", count=_PAGE)):
            newest = max(newest, page[0][0], key=_order)
            rows.extend(row for _, fields in page if query.matches(row := decode(fields)))
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


def decode(fields: dict[bytes, bytes]) -> Row:
    """Return the record of one stream entry."""
    row: Row = msgspec.json.decode(fields[b"r"])
    return row


def _order(identity: bytes) -> tuple[int, int]:
    millis, _, number = identity.partition(b"-")
    return int(millis), int(number)
