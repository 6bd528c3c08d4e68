"""Finds records, sealed and live: by number, service, key, decision, code, time and request id, freely combined.

Of each account the sealed records come before the live ones, in the order in which they were written to its stream: that of
their time, but for what a journal carried over. What is sealed, and perhaps trimmed, while a search goes on is told once.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import msgspec

from gateway.audit import Head
from gateway.trail.archive import Reader, State, read_state
from gateway.trail.index import BrokenIndex, Query

__all__ = ["Found", "Page", "Query", "Row", "Trail", "decode", "encoded", "order", "still_reached"]

_PAGE: Final = 1000
_FOLLOW_EVERY_SECONDS: Final = 0.1

Row = dict[str, Any]
_IN_EVERY: Final[Mapping[str, type]] = {"stage": str, "writer": str, "seq": int, "at": str, "account": str}
"""What every record has."""


class Found(NamedTuple):
    """One record."""

    row: Row
    record: bytes
    """As it is stored."""
    sealed: bool


class Page(NamedTuple):
    """Some matching records, and the ways to those before and behind them."""

    found: list[Found]
    """Oldest first."""
    older: str | None
    """What `Trail.page` takes for the page before this one, which may be empty; None: there is none.

    It stays good while records are written and sealed. A stream in which nothing was found yet is told from its newest record.
    """
    newer: str | None = None
    """What `Trail.page` takes for the page behind this one; None: there was none."""
    cut: bool = False
    """Whether it ends, though it has room, because as many live records were looked at as were allowed."""

    @property
    def rows(self) -> list[Row]:
        """The records as what they say."""
        return [one.row for one in self.found]


class _Mark(msgspec.Struct, array_like=True, frozen=True):
    """A place between two records of a stream: below the one that is named, or above it."""

    writer: str
    seq: int
    entry: str
    """Its id in the stream; empty where it was sealed."""
    below: bool = True


class _Step(NamedTuple):
    """A record that matches, in its stream; `found` is None where a stream goes no further than to the mark."""

    found: Found | None
    mark: _Mark


class _Allowance:
    """How many live records may still be looked at."""

    def __init__(self, most: int | None) -> None:
        self._left = most

    def spend(self, count: int) -> bool:
        """Note that some were looked at, and say whether more may be."""
        if self._left is not None:
            self._left -= count
        return self._left is None or self._left > 0


_read_head = msgspec.json.Decoder(Head).decode
_read_marks = msgspec.json.Decoder(dict[str, _Mark]).decode


class Trail:
    """The audit streams of some accounts as one, each read in order and without what was written twice."""

    def __init__(self, client: Any, keys: Sequence[str], reader: Reader | None = None) -> None:
        """`keys` are the streams' names in Redis; on a cluster they may lie in different slots. `reader`: of what is sealed.

        Without a `client` pages tell what is sealed alone.
        """
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
        page = await self._page(query, count, {}, last, None)
        return page.rows, last

    async def page(
        self, query: Query, count: int, older: str | None = None, *, newer: str | None = None, live_max: int | None = None
    ) -> Page:
        """Return the newest matching records, or those before another page, or those behind one.

        `live_max`: how many live records may be looked at. Raises: ValueError where `older` or `newer` is not what a page told,
        OSError, BrokenIndex.
        """
        if newer is not None:
            return await self._page_behind(query, count, newer, live_max)
        page = await self._page(query, count, _marks(older) if older else {}, {}, live_max)
        return page._replace(newer=older or None)

    async def live(self, most: int) -> tuple[list[bytes], bool]:
        """Return the newest records that are not sealed yet, the newest of each stream first, and whether these are all.

        What was written twice is told twice, and may be among the sealed.
        """
        found, whole = list[bytes](), True
        for key in self._keys if self._client is not None else ():
            # Each has its share: what one account's callers write does not hide what is written of another.
            allowance, lowest, first = _Allowance(most // len(self._keys)), _lowest(Query(), await self._position(key)), b"+"
            while page := await self._client.xrevrange(key, first, lowest, count=_PAGE):
                found += [encoded(fields) for _, fields in page]
                if not allowance.spend(len(page)):
                    whole = False
                    break
                first = b"(" + page[-1][0]
        return found, whole

    async def newest_first(self, query: Query) -> AsyncIterator[Row]:
        """Yield matching records, each stream's newest first, one stream after the other. Raises: OSError, BrokenIndex."""
        for key in self._keys:
            async for step in self._backwards(key, query, None, b"+", _PAGE, _Allowance(None)):
                if step.found is not None:
                    yield step.found.row

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

    async def _page(
        self, query: Query, count: int, marks: Mapping[str, _Mark], last: Mapping[str, bytes], live_max: int | None
    ) -> Page:
        allowance = _Allowance(live_max)
        streams = {key: self._backwards(key, query, marks.get(key), last.get(key, b"+"), count, allowance) for key in self._keys}
        merged = await _merge(streams, count, max)
        reached = dict(marks)
        # Where a stream was only looked into, the page before begins with what was seen there, whatever is written meanwhile.
        reached |= {key: msgspec.structs.replace(step.mark, below=False) for key, step in merged.heads.items()}
        reached |= {key: step.mark for key, step in merged.last.items()}
        # Of one time the one that was written later stands later.
        merged.found.reverse()
        merged.found.sort(key=lambda one: str(one.row["at"]))
        return Page(merged.found, _text(reached) if streams else None, cut=merged.cut)

    async def _page_behind(self, query: Query, count: int, newer: str, live_max: int | None) -> Page:
        marks, allowance = _marks(newer), _Allowance(live_max)
        streams = {key: self._upwards(key, query, marks[key], count, allowance) for key in self._keys if key in marks}
        merged = await _merge(streams, count, min, look_on=True)
        reached = {key: msgspec.structs.replace(step.mark, below=False) for key, step in merged.last.items()}
        merged.found.sort(key=lambda one: str(one.row["at"]))
        return Page(merged.found, newer, _text(marks | reached) if streams else None, merged.cut)

    async def _records(self, key: str, query: Query) -> AsyncIterator[Row]:
        async for records in self._forwards(key, query, "+", _Told()):
            for record in records:
                row = decode(record)
                if row is not None and query.matches(row):
                    yield row

    async def _forwards(self, key: str, query: Query, last: str, told: _Told | None) -> AsyncIterator[list[bytes]]:
        """Yield the sealed records that match, then all live ones from the query's `since` to an id in the stream."""
        first = _lowest(query, await self._position(key))
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

    async def _backwards(
        self, key: str, query: Query, mark: _Mark | None, last: bytes, count: int, allowance: _Allowance
    ) -> AsyncIterator[_Step]:
        """Yield matching records from a mark down, or from an id in the stream; `count`: how many are likely to be wanted."""
        state, told = self._state(), _Told()
        place = None if mark is None else self._place(mark.writer, mark.seq, state)
        if mark is not None and place is None and not mark.entry:
            return  # It was sealed and is removed, and so is all before it.
        if place is None and self._client is not None:
            lowest = _lowest(query, await self._position(key))
            first = last if mark is None else (b"(" if mark.below else b"") + mark.entry.encode()
            size, reached = min(count, _PAGE), mark
            while page := await self._client.xrevrange(key, first, lowest, count=size):
                for step in self._live(page, query, told, state):
                    reached = step.mark
                    if step.found is not None:
                        yield step
                if not allowance.spend(len(page)):
                    yield _Step(None, reached or _Mark("", -1, page[-1][0].decode()))
                    return
                first, size = b"(" + page[-1][0], _PAGE
        # The live ones first: what is sealed, and trimmed, while they are read is found among the sealed.
        before = None if place is None or mark is None else place + (not mark.below)
        found = self._sealed(key, query, self._state(), before=before, newest_first=True, at_once=count)
        for step in _steps(found, query, told):
            yield step

    async def _upwards(self, key: str, query: Query, mark: _Mark, count: int, allowance: _Allowance) -> AsyncIterator[_Step]:
        """Yield matching records from a mark up."""
        state, told = self._state(), _Told()
        place, first = self._place(mark.writer, mark.seq, state), ("" if mark.below else "(") + mark.entry
        if place is not None or not mark.entry:
            # What was removed is followed by the oldest there is.
            after = -1 if place is None else place - mark.below
            for step in _steps(self._sealed(key, query, state, after=after, at_once=count), query, told):
                yield step
            position = None if self._client is None else await self._still_reached(key, state)
            first = "-" if position is None else f"({position}"
        size = min(count, _PAGE)
        while self._client is not None and (page := await self._client.xrange(key, first, "+", count=size)):
            for step in self._live(page, query, told, state):
                mark = step.mark
                if step.found is not None:
                    yield step
            if not allowance.spend(len(page)):
                yield _Step(None, mark)
                return
            first, size = f"({page[-1][0].decode()}", _PAGE

    def _live(self, page: Sequence[Any], query: Query, told: _Told, state: State) -> Iterator[_Step]:
        """Yield a step for each entry that is a record, with what was found where it matches."""
        for entry, record in ((entry, encoded(fields)) for entry, fields in page):
            if (row := decode(record)) is not None:
                fits = query.matches(row) and self._new(record, told, state)
                mark = _Mark(row["writer"], row["seq"], entry.decode())
                yield _Step(Found(row, record, sealed=False) if fits else None, mark)

    def _sealed(
        self,
        key: str,
        query: Query,
        state: State,
        *,
        after: int = -1,
        before: int | None = None,
        newest_first: bool = False,
        at_once: int = _PAGE,
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
        while found := self._reader.index.find(
            query, after=after, before=end, newest_first=newest_first, limit=min(at_once, _PAGE)
        ):
            yield list(self._reader.records(found))
            after, end = (after, found[-1][0]) if newest_first else (found[-1][0], end)

    async def _position(self, key: str) -> str | None:
        """Return the id of the last entry of a stream that is sealed; None: all there are may be live."""
        return await self._still_reached(key, self._state())

    async def _still_reached(self, key: str, state: State) -> str | None:
        return await still_reached(self._client, key, state.positions.get(key))

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


class _Merged(NamedTuple):
    """What was taken of some streams."""

    found: list[Found]
    last: dict[str, _Step]
    """The last step taken of each stream."""
    heads: dict[str, _Step]
    """What comes next in those that were looked into."""
    cut: bool


async def _merge(
    streams: dict[str, AsyncIterator[_Step]], count: int, pick: Callable[..., str], *, look_on: bool = False
) -> _Merged:
    """Take steps of streams in the order of their time; those that ended are removed from `streams`.

    `pick`: `max` for the newest first, `min` for the oldest. `look_on`: also look whether there is more when there is enough.
    """
    merged = _Merged([], {}, {}, cut=False)
    heads = merged.heads
    while look_on or len(merged.found) < count:
        for key in [key for key in streams if key not in heads]:
            if (head := await anext(streams[key], None)) is None:
                del streams[key]
            elif head.found is None:
                # What comes next of this stream is not known, so no more can be told of any.
                merged.last[key] = head
                return merged._replace(cut=True)
            else:
                heads[key] = head
        if not heads or len(merged.found) >= count:
            break
        key = pick(heads, key=lambda key: _at(heads[key]))
        merged.last[key] = step = heads.pop(key)
        if step.found is not None:
            merged.found.append(step.found)
    return merged


def _steps(sealed: Iterable[list[bytes]], query: Query, told: _Told) -> Iterator[_Step]:
    """Yield sealed records that match and were not told while they were live."""
    for records in sealed:
        for record in records:
            row = decode(record)
            if row is not None and query.matches(row) and record not in told:
                yield _Step(Found(row, record, sealed=True), _Mark(row["writer"], row["seq"], ""))


def _at(step: _Step) -> str:
    return str(step.found.row["at"]) if step.found is not None else ""


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
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    whole = all(isinstance(row.get(name), kind) for name, kind in _IN_EVERY.items())
    return row if whole else None


def encoded(fields: Mapping[bytes, bytes]) -> bytes:
    """Return the record that an entry of a stream carries; empty where it carries none."""
    return fields.get(b"r", b"")


def _identity(record: bytes) -> tuple[str, int] | None:
    try:
        head = _read_head(record)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return head.writer, head.seq


def _lowest(query: Query, position: str | None) -> str:
    """Return from where on a stream holds live records that may match. `position`: up to which it is sealed."""
    # A record is never in the stream before its own time, but the journal may bring it much later.
    first = "-" if query.since is None else f"{max(0, int(query.since * 1000))}-0"
    return f"({position}" if position is not None and (first == "-" or order(position) >= order(first)) else first


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
