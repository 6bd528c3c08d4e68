"""Finds records, sealed and live: by number, service, key, decision, code, time and request id, freely combined.

Of each account the sealed records come before the live ones, in the order in which they were written to its stream: that of
their time, but for what a journal carried over. What is sealed, and perhaps trimmed, while a search goes on is told once.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import msgspec

from gateway.audit import Head
from gateway.trail.archive import Reader, State, read_state
from gateway.trail.index import BrokenIndex, Query

__all__ = ["Page", "Query", "Row", "Trail", "decode", "encoded", "order", "still_reached"]

_PAGE: Final = 1000
_FOLLOW_EVERY_SECONDS: Final = 0.1

Row = dict[str, Any]
_IN_EVERY: Final[Mapping[str, type]] = {"stage": str, "writer": str, "seq": int, "at": str, "account": str}
"""What every record has."""


class Page(NamedTuple):
    """Some matching records, and the way to the ones before them."""

    rows: list[Row]
    """Oldest first."""
    older: str | None
    """What `Trail.page` takes for the page before this one, which may be empty; None: there is none.

    It stays good while records are written and sealed. A stream of which no page told yet is told from its newest record.
    """


class _Mark(msgspec.Struct, array_like=True, frozen=True):
    """The oldest record of a stream that a page told."""

    writer: str
    seq: int
    entry: str
    """Its id in the stream; empty where it was sealed."""


_read_head = msgspec.json.Decoder(Head).decode
_read_marks = msgspec.json.Decoder(dict[str, _Mark]).decode


class Trail:
    """The audit streams of some accounts as one, each read in order and without what was written twice."""

    def __init__(self, client: Any, keys: Sequence[str], reader: Reader | None = None) -> None:
        """`keys` are the streams' names in Redis; on a cluster they may lie in different slots. `reader`: of what is sealed."""
        self._client = client
        self._keys = keys
        self._reader = reader

    async def search(self, query: Query) -> AsyncIterator[Row]:
        """Yield matching records, oldest first, each once. Raises: OSError, BrokenIndex."""
        streams = [self._records(key, query) for key in self._keys]
        heads = {number: row for number, stream in enumerate(streams) if (row := await anext(stream, None)) is not None}
        while heads:
            oldest = min(heads, key=lambda number: heads[number]["at"])
            yield heads.pop(oldest)
            if (row := await anext(streams[oldest], None)) is not None:
                heads[oldest] = row

    async def newest(self, query: Query, count: int) -> tuple[list[Row], dict[str, bytes]]:
        """Return the newest matching records, oldest first, and for each stream the id to follow from."""
        last = {}
        for key in self._keys:
            entries = await self._client.xrevrange(key, "+", "-", count=1)
            last[key] = entries[0][0] if entries else b"0-0"
        page = await self._page(query, count, {}, last)
        return page.rows, last

    async def page(self, query: Query, count: int, older: str | None = None) -> Page:
        """Return the newest matching records, or those before another page.

        Raises: ValueError where `older` is not what a page told, OSError, BrokenIndex.
        """
        return await self._page(query, count, _marks(older) if older else {}, {})

    async def follow(self, query: Query, last: Mapping[str, bytes]) -> AsyncIterator[Row]:
        """Yield matching records for ever, as they are written after the given stream ids."""
        reached = dict(last)
        while True:
            for key in self._keys:
                for identity, fields in await self._client.xrange(key, b"(" + reached[key], "+", count=_PAGE):
                    reached[key] = identity
                    row = decode(encoded(fields))
                    if row is not None and query.matches(row):
                        yield row
            await asyncio.sleep(_FOLLOW_EVERY_SECONDS)

    async def pages(self, key: str, since: float | None, until: float | None = None) -> AsyncIterator[list[bytes]]:
        """Yield the records of one stream as they are, many at a time, the sealed ones first.

        Of the sealed those whose own time is from `since` to `until` (Unix seconds), of the live those written then. Raises:
        OSError, BrokenIndex.
        """
        last = "+" if until is None else f"{int(until * 1000)}-0"
        # Without an archive only what was written twice is told twice: not worth remembering all history.
        told = None if self._reader is None else _Told()
        async for records in self._forwards(key, Query(since=since, until=until), last, told):
            yield records

    async def _page(self, query: Query, count: int, marks: Mapping[str, _Mark], last: Mapping[str, bytes]) -> Page:
        reached = dict(marks)
        streams = {key: self._backwards(key, query, marks.get(key), last.get(key, b"+")) for key in self._keys}
        heads: dict[str, tuple[Row, _Mark]] = {}
        rows: list[Row] = []
        while len(rows) < count:
            for key in [key for key in streams if key not in heads]:
                if (head := await anext(streams[key], None)) is not None:
                    heads[key] = head
                else:
                    del streams[key]
            if not heads:
                break
            newest = max(heads, key=lambda key: heads[key][0]["at"])
            row, reached[newest] = heads.pop(newest)
            rows.append(row)
        rows.sort(key=lambda row: str(row["at"]))
        return Page(rows, _text(reached) if streams else None)

    async def _records(self, key: str, query: Query) -> AsyncIterator[Row]:
        async for records in self._forwards(key, query, "+", _Told()):
            for record in records:
                row = decode(record)
                if row is not None and query.matches(row):
                    yield row

    async def _forwards(self, key: str, query: Query, last: str, told: _Told | None) -> AsyncIterator[list[bytes]]:
        """Yield the sealed records that match, then all live ones from the query's `since` to an id in the stream."""
        # A record is never in the stream before its own time, but the journal may bring it much later.
        first = "-" if query.since is None else f"{int(query.since * 1000)}-0"
        position = await self._position(key)
        if position is not None and (first == "-" or order(position) >= order(first)):
            first = f"({position}"
        size, more = 0, True
        while more:
            page = await self._client.xrange(key, first, last, count=_PAGE)
            # The state is read behind the page: what was trimmed before the page could hold it is sealed by then.
            state = self._state()
            for found in self._sealed(key, query, state, after=size - 1):
                yield found if told is None else [record for record in found if record not in told]
            size = state.size
            live = [record for _, fields in page if self._new(record := encoded(fields), told, state)]
            if live:
                yield live
            if more := bool(page):
                first = f"({page[-1][0].decode()}"

    async def _backwards(self, key: str, query: Query, mark: _Mark | None, last: bytes) -> AsyncIterator[tuple[Row, _Mark]]:
        """Yield matching records from the one before a mark down, or from an id in the stream."""
        state, told = self._state(), _Told()
        before = None if mark is None else self._place(mark.writer, mark.seq, state)
        if mark is not None and before is None and not mark.entry:
            return  # It was sealed and is removed, and so is all before it.
        if before is None:
            position = await self._position(key)
            first = last if mark is None else f"({mark.entry}".encode()
            while page := await self._client.xrevrange(key, first, "-" if position is None else f"({position}", count=_PAGE):
                for entry, record in ((entry, encoded(fields)) for entry, fields in page):
                    row = decode(record)
                    if row is not None and query.matches(row) and self._new(record, told, state):
                        yield row, _Mark(row["writer"], row["seq"], entry.decode())
                first = b"(" + page[-1][0]
        # The live ones first: what is sealed, and trimmed, while they are read is found among the sealed.
        for found in self._sealed(key, query, self._state(), before=before, newest_first=True):
            for record in found:
                row = decode(record)
                if row is not None and query.matches(row) and record not in told:
                    yield row, _Mark(row["writer"], row["seq"], "")

    def _sealed(
        self, key: str, query: Query, state: State, *, after: int = -1, before: int | None = None, newest_first: bool = False
    ) -> Iterator[list[bytes]]:
        """Yield the sealed records of a stream that match, many at a time."""
        account = key[key.index("{") + 1 : key.index("}")]
        if self._reader is None or query.account not in (None, account):
            return
        if (size := self._reader.index.size) < state.size:
            raise BrokenIndex(
                f"the index of {self._reader.folder} is being made, {size:,} of {state.size:,} records: try again later"
            )
        query, end = replace(query, account=account), state.size if before is None else before
        while found := self._reader.index.find(query, after=after, before=end, newest_first=newest_first, limit=_PAGE):
            yield list(self._reader.records(found))
            after, end = (after, found[-1][0]) if newest_first else (found[-1][0], end)

    async def _position(self, key: str) -> str | None:
        """Return the id of the last entry of a stream that is sealed; None: all there are may be live."""
        return await still_reached(self._client, key, self._state().positions.get(key))

    def _new(self, record: bytes, told: _Told | None, state: State) -> bool:
        """Say whether a live record is not among the sealed, and was not told yet."""
        if told is None or (identity := _identity(record)) is None:
            return True
        return self._place(*identity, state) is None and told.add(identity)

    def _place(self, writer: str, seq: int, state: State) -> int | None:
        place = None if self._reader is None else self._reader.index.place_of(writer, seq)
        # What stands behind the state is not sealed yet: its sealer may have died.
        return place if place is not None and place < state.size else None

    def _state(self) -> State:
        return State() if self._reader is None else read_state(self._reader.folder)


class _Told:
    """Which live records came by: none is told again that was written twice, or that is sealed meanwhile."""

    def __init__(self) -> None:
        self._identities: set[tuple[str, int]] = set()

    def add(self, identity: tuple[str, int]) -> bool:
        """Note one, and say whether it is new."""
        if identity in self._identities:
            return False
        self._identities.add(identity)
        return True

    def __contains__(self, record: bytes) -> bool:
        return bool(self._identities) and _identity(record) in self._identities


def decode(encoded: bytes) -> Row | None:
    """Return a record; None for what is none: one odd entry must not hide all others."""
    try:
        row: Row = msgspec.json.decode(encoded, type=Row)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    whole = all(isinstance(row.get(name), kind) for name, kind in _IN_EVERY.items())
    return row if whole else None


def encoded(fields: Mapping[bytes, bytes]) -> bytes:
    """Return the record that an entry of a stream carries; empty where it carries none."""
    return fields.get(b"r", b"")


def _identity(record: bytes) -> tuple[str, int] | None:
    try:
        head = _read_head(record)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return head.writer, head.seq


def _text(marks: Mapping[str, _Mark]) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(marks)).decode().rstrip("=")


def _marks(text: str) -> dict[str, _Mark]:
    try:
        return _read_marks(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError):
        raise ValueError("it is not what a page told of the one before it") from None


async def still_reached(client: Any, key: str, position: str | None) -> str | None:
    """Return a position in a stream, or None where it is one no more: the stream was lost, and Redis' clock set back."""
    newest = await client.xrevrange(key, "+", "-", count=1) if position is not None else ()
    # Ids began anew then.
    return None if newest and position is not None and order(newest[0][0].decode()) < order(position) else position


def order(entry: str) -> tuple[int, int]:
    """Return what ids of a stream's entries are compared by."""
    millis, _, number = entry.partition("-")
    return int(millis), int(number)
