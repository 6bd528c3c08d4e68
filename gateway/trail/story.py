"""The story of one request: all that was recorded of it, live and sealed, and how its records hang together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from gateway import audit
from gateway.trail.archive import Reader
from gateway.trail.index import Query
from gateway.trail.search import Row, Trail, decode

RECORDS_MAX: Final = 200
"""Of one request that are told: callers choose request ids, and may give many calls one."""
_SEQ_DIGITS_MAX: Final = 18


class _Name(msgspec.Struct):
    """What a record is looked up by: whole ones take five times as long to read."""

    writer: str
    seq: int
    request_id: Any = None


_read_name = msgspec.json.Decoder(_Name).decode


@dataclass(frozen=True, slots=True)
class Chapter:
    """One record of a story."""

    record: bytes
    """As it is stored."""
    row: Row
    where: tuple[int, int] | None
    """Its place in the tree and its offset in its segment; None: it is not sealed yet."""
    follows: bool | None
    """Whether it names the record before it of its writer as that is stored; None: that one is not at hand."""
    followed: bool
    """Whether its writer's next record is at hand."""

    @property
    def id(self) -> str:
        """`writer-seq`."""
        return f"{self.row['writer']}-{self.row['seq']}"


@dataclass(frozen=True, slots=True)
class Story:
    """The records of one request, in their order; of one record that belongs to none, that one."""

    request_id: str | None
    chapters: list[Chapter]
    whole: bool
    """Whether all live records were looked at."""
    more: bool = False
    """Whether the request has more records than are told."""


class Teller:
    """Tells stories from a trail whose live records were read once."""

    def __init__(self, reader: Reader | None, live: list[bytes], *, whole: bool) -> None:
        """`live`: records that are not sealed, and `whole`: whether these are all."""
        self._reader = reader
        self.whole = whole
        named = ((record, name) for record in live if (name := _named(record)) is not None)
        self._live = {(name.writer, name.seq): (record, name.request_id) for record, name in named}

    def tell(self, name: str) -> Story | None:
        """Return the story of a record, by `writer-seq`, or of a request; None where nothing is known of either.

        A record's name goes first: callers choose request ids, and must hide no record. Raises: BrokenIndex, OSError.
        """
        one = self._one(*named) if (named := _identity(name)) is not None else None
        request_id = name if one is None else one[1].get("request_id")
        if isinstance(request_id, str):
            found = self._of(request_id)
            found, more = found[:RECORDS_MAX], len(found) > RECORDS_MAX
            # Beyond the bound the one that was asked for is told all the same.
            known = one is None or any(one[0] == record for record, _, _ in found)
            found = found if known or one is None else [one, *found]
        else:
            request_id, found, more = None, [one] if one is not None else [], False
        if not found:
            return None
        # A writer numbers its records as it writes them; a try that follows another tells the same time of arrival.
        alone = len({row["writer"] for _, row, _ in found}) == 1
        found.sort(key=lambda each: ("" if alone else each[1]["at"], each[1]["writer"], each[1]["seq"]))
        return Story(request_id, [self._chapter(*each) for each in found], self.whole, more)

    def _of(self, request_id: str) -> list[tuple[bytes, Row, tuple[int, int] | None]]:
        found: list[tuple[bytes, Row, tuple[int, int] | None]] = []
        if self._reader is not None:
            for where in self._reader.index.find(Query(request_id=request_id), limit=RECORDS_MAX + 1):
                found += [(record, row, where) for record in self._reader.records([where]) if (row := decode(record))]
        sealed = {(row["writer"], row["seq"]) for _, row, _ in found}
        for identity, (record, named) in self._live.items():
            if named == request_id and identity not in sealed and len(found) <= RECORDS_MAX:
                found += [(record, row, None)] if (row := decode(record)) is not None else []
        return found

    def _one(self, writer: str, seq: int) -> tuple[bytes, Row, tuple[int, int] | None] | None:
        place = self._reader.index.place_of(writer, seq) if self._reader is not None else None
        if self._reader is not None and place is not None:
            for where in self._reader.index.find(Query(), after=place - 1, before=place + 1, limit=1):
                for record in self._reader.records([where]):
                    return (record, row, where) if (row := decode(record)) is not None else None
        live = self._live.get((writer, seq))
        row = decode(live[0]) if live is not None else None
        return (live[0], row, None) if live is not None and row is not None else None

    def _chapter(self, record: bytes, row: Row, where: tuple[int, int] | None) -> Chapter:
        before, seq = None, row["seq"]
        if seq > 0 and (previous := self._one(row["writer"], seq - 1)) is not None:
            before = audit.chained(previous[0]).hex()
        follows = (None if before is None else row.get("prev") == before) if seq else not row.get("prev")
        return Chapter(record, row, where, follows, self._one(row["writer"], seq + 1) is not None)


async def teller(trail: Trail, reader: Reader | None, live_max: int) -> Teller:
    """Return who tells the stories of a trail, of whose live records so many are looked at."""
    live, whole = await trail.live(live_max)
    return Teller(reader, live, whole=whole)


def verdicts(row: Row) -> list[dict[str, Any]]:
    """Return a line for each limit that was looked at for one try of a request: what it said, and when a retry passed."""
    arrived = audit.unix_seconds(row["at"]) - (row.get("duration_ms", 0) / 1000 if row["stage"] == "outcome" else 0)
    lines = []
    for told in audit.read_limits(row.get("limits") or ""):
        wait = told.retry_after_seconds
        lines.append(
            {
                "attempt": row.get("attempt", 1),
                "policy": told.policy,
                "field": told.field,
                "mode": "shadow" if told.shadow else "enforce",
                "left": told.left,
                "burst": told.burst,
                "verdict": "passed" if wait is None else "would have refused" if told.shadow else "refused",
                "retry_after_seconds": wait,
                "retry_at": None if wait is None else audit.rfc3339(arrived + wait),
                "degraded": row.get("degraded", False),
            }
        )
    return lines


def _named(record: bytes) -> _Name | None:
    try:
        return _read_name(record)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _identity(name: str) -> tuple[str, int] | None:
    writer, _, seq = name.rpartition("-")
    known = bool(writer) and seq.isascii() and seq.isdecimal() and len(seq) <= _SEQ_DIGITS_MAX
    return (writer, int(seq)) if known else None
