"""The index of the archive: where each record stands, and what it is found by.

Records are taken in blocks of 65,536, and each block is an index of its own: of a word that many records share (a service, a
result, an hour) it keeps one bit for each record, of a name that few share (a number, a request) a row for each. Whatever a
query combines is one AND of bits a block, from the newest block down: no value is too frequent, no combination too empty, and
no plan is to be chosen. The bits of a word that is rare in a block are kept as a list, as Roaring bitmaps do (Chambi, Lemire,
Kaser and Godin, 2016). All of it can be made again from the segments.
"""

from __future__ import annotations

import os
import re
import sqlite3
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, reduce
from hashlib import sha256
from itertools import groupby
from operator import or_
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec

from gateway.audit import rfc3339
from gateway.errors import Complaint
from gateway.model import NUMBER_FIELDS, RESULTS

_VERSION: Final = 1
"""Of the tables below, as `PRAGMA user_version`: an index of another version is made anew."""
_TABLES: Final = """
CREATE TABLE extent (size INTEGER NOT NULL);
INSERT INTO extent VALUES (0);
-- `at`: milliseconds since 1970. `writer`: a word.
CREATE TABLE records (place INTEGER PRIMARY KEY, offset INTEGER NOT NULL, at INTEGER, writer INTEGER, seq INTEGER);
CREATE INDEX identities ON records (writer, seq) WHERE seq IS NOT NULL;
CREATE TABLE words (id INTEGER PRIMARY KEY, field TEXT NOT NULL, text TEXT NOT NULL, UNIQUE (field, text));
-- `id`: block << 32 | word. `places`: within the block, 16 bits each; or, where that is shorter, one bit for each.
CREATE TABLE bits (id INTEGER PRIMARY KEY, places BLOB NOT NULL);
CREATE TABLE names (block INTEGER, name INTEGER, place INTEGER, PRIMARY KEY (block, name, place)) WITHOUT ROWID;
"""
_BLOCK: Final = 1 << 16
_BITMAP_BYTES: Final = _BLOCK // 8
_LISTED_MAX: Final = _BITMAP_BYTES // 2
_WORDS_KEPT: Final = 100_000
_CACHE_KB: Final = 65_536

_HOUR_MS: Final = 3_600_000
_DAY_HOURS: Final = 24
_FIRST_MS: Final = -62_135_596_800_000
"""Year 1, and with the next the end of year 9999: what RFC 3339 can write."""
_LAST_MS: Final = 253_402_300_799_999

_EVERY: Final = 0
"""The word that every record has."""
_HOURS: Final = 1 << 31
"""Where the words of hours begin: that of the hour 1970-01-01T00."""
_WORD_MASK: Final = (1 << 32) - 1

_SOUGHT: Final = ("stage", "account", "service", "key_id", "source", "decision", "result", "problem", "code")
_KINDS: Final[dict[str, type]] = {**dict.fromkeys((*_SOUGHT, "pseudonym_key"), str), "code": int}
"""The fields whose values are words, and what these have to be."""
_CLOSING: Final = ("outcome", "refusal", "abort")
# Without a sound file there is no answer; all else (no room, no right, somebody's lock) is the machine's trouble.
_UNSOUND: Final = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CONSTRAINT)
_WRITTEN: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", re.ASCII)
_read = msgspec.json.Decoder(dict[str, Any]).decode


class BrokenIndex(Complaint):
    """The index cannot be used as it is. The message is one line: the reason and the fix."""


@dataclass(frozen=True, slots=True)
class Query:
    """What to look for; None: anything. All that is given has to hold."""

    pseudonyms: tuple[str, ...] = ()
    """Of one number, one for each pseudonym key; found in any of m1, m2 and mask. Empty: any number, or none."""
    stage: str | None = None
    account: str | None = None
    service: str | None = None
    key_id: str | None = None
    source: str | None = None
    decision: str | None = None
    """`allowed` or `denied`."""
    result: str | None = None
    problem: str | None = None
    code: int | None = None
    request_id: str | None = None
    since: float | None = None
    """Unix seconds, inclusive."""
    until: float | None = None
    """Unix seconds, inclusive."""

    def matches(self, row: dict[str, Any]) -> bool:
        """Say whether one record holds all that is asked."""
        if self.pseudonyms and all(row.get(field) not in self.pseudonyms for field in NUMBER_FIELDS):
            return False
        if self.request_id is not None and row.get("request_id") != self.request_id:
            return False
        if self.since is not None or self.until is not None:
            first, last = _span(self.since, self.until)
            at = moment(row.get("at"))
            if at is None or not first <= at <= last:
                return False
        return all((wanted := getattr(self, field)) is None or row.get(field) == wanted for field in _SOUGHT)


class Entry(NamedTuple):
    """A record and where it stands."""

    place: int
    """In the tree."""
    offset: int
    """Bytes before it in its segment."""
    record: bytes
    """As it is, without the newline."""


class Day(NamedTuple):
    """What became of the calls of one service on one day: of the records that close an intent, or had none."""

    service: str | None
    """None: nobody was authenticated."""
    day: str
    """Such as `2030-01-31`, in UTC."""
    calls: int
    answered: int
    refused: int
    failed: int
    unknown: int


class PseudonymKey(NamedTuple):
    """Which records hold pseudonyms made with one key."""

    key_id: str
    records: int
    first: str
    """`at` of the oldest of them, and of the newest; empty where none has a readable one."""
    last: str


class Index:
    """The index in one SQLite file; one process may write it while others read it."""

    def __init__(self, path: Path, read_only: bool = False) -> None:
        """Open it; to write it, make it where there is none, and anew where it is broken or another version's.

        Raises: BrokenIndex where it can only be read, OSError.
        """
        self._path = path
        self._words: dict[tuple[str, object], int] = {}
        try:
            self._db = _opened(path, read_only)
        except BrokenIndex:
            if read_only:
                raise
            for end in ("", "-wal", "-shm"):
                path.with_name(path.name + end).unlink(missing_ok=True)
            self._db = _opened(path, read_only)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @property
    def size(self) -> int:
        """Return the place behind the last one that is indexed; 0 when none ever was."""
        with self._transaction():
            return self._size()

    def add(self, entries: Sequence[Entry]) -> None:
        """Take records, in place of what stands where they stand. All of them, or none. Raises: BrokenIndex, OSError."""
        bits: defaultdict[int, list[int]] = defaultdict(list)
        names, records = [], []
        with self._transaction(to="write"):
            size = self._size()
            known = sorted(entry.place for entry in entries if entry.place < size)
            for _, run in groupby(enumerate(known), lambda numbered: numbered[1] - numbered[0]):
                places = [place for _, place in run]
                self._drop(places[0], places[-1] + 1)
            for place, offset, record in entries:
                row = _decoded(record)
                block, at, seq = place // _BLOCK, moment(row.get("at")), row.get("seq")
                for word in self._words_of(row, at):
                    bits[block << 32 | word].append(place % _BLOCK)
                names += [(block, name, place) for name in _names_of(row)]
                writer = self._word("writer", row["writer"]) if isinstance(row.get("writer"), str) else None
                if type(seq) is not int or writer is None or seq.bit_length() > 63:
                    seq = None
                records.append((place, offset, at, writer, seq))
                size = max(size, place + 1)
            self._db.executemany("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?, ?)", records)
            # In the order of their keys they touch each page once.
            self._db.executemany("INSERT OR IGNORE INTO names VALUES (?, ?, ?)", sorted(names))
            for identity, places in sorted(bits.items()):
                self._put(identity, _joined(self._get(identity), places))
            self._db.execute("UPDATE extent SET size = ?", (size,))

    def cut(self, size: int) -> None:
        """Drop what stands at a place and behind it. Raises: BrokenIndex, OSError."""
        with self._transaction(to="write"):
            if size < (end := self._size()):
                self._drop(size, end)
                self._db.execute("UPDATE extent SET size = ?", (size,))

    def forget(self, before: int) -> None:
        """Drop what stands before a place. Raises: BrokenIndex, OSError."""
        with self._transaction(to="write"):
            self._drop(self._first(), min(before, self._size()))
            # Who tries unknown keys makes words, and they are not to stay for ever.
            self._words.clear()
            self._db.execute("CREATE TEMP TABLE used AS SELECT DISTINCT id & ? AS word FROM bits", (_WORD_MASK,))
            self._db.execute("INSERT INTO used SELECT DISTINCT writer FROM records WHERE seq IS NOT NULL")
            self._db.execute("DELETE FROM words WHERE id NOT IN (SELECT word FROM used)")
            self._db.execute("DROP TABLE used")

    def place_of(self, writer: str, seq: int) -> int | None:
        """Return the place of a writer's record; None where it is not indexed."""
        with self._transaction():
            word = self._known("writer", writer)
            if word is None or seq.bit_length() > 63:
                return None
            found = self._db.execute("SELECT min(place) FROM records WHERE writer = ? AND seq = ?", (word, seq)).fetchone()
            return None if found[0] is None else int(found[0])

    def find(
        self, query: Query, *, after: int = -1, before: int | None = None, newest_first: bool = False, limit: int
    ) -> list[tuple[int, int]]:
        """Return the places and offsets of records that match, in the order of their places, or from the last one down.

        Of those after a place and before one, both exclusive, at most `limit`. Raises: BrokenIndex, OSError.
        """
        found: list[int] = []
        with self._transaction():
            words = [self._known(field, wanted) for field in _SOUGHT if (wanted := getattr(query, field)) is not None]
            if None in words:
                return []
            start, end = max(after + 1, self._first()), self._size() if before is None else min(before, self._size())
            blocks = range(start // _BLOCK, -(-end // _BLOCK))
            for block in reversed(blocks) if newest_first else blocks:
                bits = self._matching(block, query, [word for word in words if word is not None])
                bits &= _places_from(start - block * _BLOCK) & ~_places_from(end - block * _BLOCK)
                for low in _listed(bits, newest_first):
                    if len(found) == limit:
                        break
                    found.append(block * _BLOCK + low)
                if len(found) == limit:
                    break
            return [(place, self._offset(place)) for place in found]

    def report(self, since: float | None = None, until: float | None = None) -> list[Day]:
        """Count calls by service and day, in the order of days. Unix seconds, inclusive. Raises: BrokenIndex, OSError."""
        counts: dict[tuple[str, str | None], Counter[str]] = defaultdict(Counter)
        span = _span(since, until)
        with self._transaction():
            closing_words = [self._known("stage", stage) for stage in _CLOSING]
            result_words = {result: self._known("result", result) for result in RESULTS}
            services = self._db.execute("SELECT text, id FROM words WHERE field = 'service'").fetchall()
            for block in self._blocks():
                closed = self._within(block, self._any(block, closing_words), *span)
                if not closed:
                    continue
                of: dict[str | None, int] = {service: closed & self._any(block, [word]) for service, word in services}
                of[None] = closed & ~reduce(or_, of.values(), 0)
                results = {result: self._any(block, [word]) for result, word in result_words.items()}
                days: defaultdict[int, int] = defaultdict(int)
                for hour, bits in self._hours(block, *span):
                    days[hour // _DAY_HOURS] |= bits
                for day, within in days.items():
                    for service, bits in of.items():
                        if calls := bits & within:
                            tally = counts[_day(day), service]
                            tally["calls"] += calls.bit_count()
                            for result, ended_so in results.items():
                                tally[result] += (calls & ended_so).bit_count()
        rows = sorted(counts.items(), key=lambda item: (item[0][0], item[0][1] or ""))
        return [Day(service, day, tally["calls"], *(tally[result] for result in RESULTS)) for (day, service), tally in rows]

    def pseudonym_keys(self) -> list[PseudonymKey]:
        """Tell of each key that made pseudonyms of records, in the order of their ids. Raises: BrokenIndex, OSError."""
        found = []
        with self._transaction():
            for key_id, word in self._db.execute(
                "SELECT text, id FROM words WHERE field = 'pseudonym_key' ORDER BY text"
            ).fetchall():
                blocks = {block: bits for block in self._blocks() if (bits := self._any(block, [word]))}
                if blocks:
                    count = sum(bits.bit_count() for bits in blocks.values())
                    found.append(PseudonymKey(key_id, count, self._edge(blocks, "min"), self._edge(blocks, "max")))
        return found

    def _edge(self, blocks: dict[int, int], which: Literal["min", "max"]) -> str:
        """Return `at` of the first or the last of some records, by block; only those of its hour are looked at."""
        pick = min if which == "min" else max
        hours = {
            block: pick(own)
            for block, bits in blocks.items()
            if (own := [hour for hour, within in self._hours(block, _FIRST_MS, _LAST_MS) if bits & within])
        }
        if not hours:
            return ""
        edge = pick(hours.values())
        ats = []
        for block in (block for block, hour in hours.items() if hour == edge):
            bits = self._within(block, blocks[block], edge * _HOUR_MS, (edge + 1) * _HOUR_MS - 1)
            for low in _listed(bits, newest_first=False):
                ats += self._db.execute("SELECT at FROM records WHERE place = ?", (block * _BLOCK + low,)).fetchone()
        return _written(pick(ats))

    def _matching(self, block: int, query: Query, words: Iterable[int]) -> int:
        """Return the bits of the records of a block that match; the cheapest conditions first."""
        bits = self._any(block, [_EVERY])
        if query.request_id is not None:
            bits &= self._named(block, [_name("request_id", query.request_id)])
        if query.pseudonyms:
            bits &= self._named(block, [_name("number", pseudonym) for pseudonym in query.pseudonyms])
        for word in words:
            if not bits:
                return 0
            bits &= self._any(block, [word])
        if query.since is None and query.until is None:
            return bits
        return self._within(block, bits, *_span(query.since, query.until))

    def _within(self, block: int, bits: int, first: int, last: int) -> int:
        """Keep of some records of a block those of a span of time (milliseconds, inclusive), by their own time."""
        if not bits:
            return 0
        inside, torn = 0, False
        for hour, of_hour in self._hours(block, first, last):
            inside |= of_hour
            torn = torn or (bool(bits & of_hour) and not first <= hour * _HOUR_MS <= (hour + 1) * _HOUR_MS - 1 <= last)
        bits &= inside
        if not torn:
            return bits
        # Of an hour that is not wholly in the span each record is asked.
        lowest, highest = (bits & -bits).bit_length() - 1, bits.bit_length() - 1
        found = self._db.execute(
            "SELECT place FROM records WHERE place BETWEEN ? AND ? AND at BETWEEN ? AND ?",
            (block * _BLOCK + lowest, block * _BLOCK + highest, first, last),
        )
        return bits & _as_bits(place % _BLOCK for (place,) in found)

    def _hours(self, block: int, first: int, last: int) -> list[tuple[int, int]]:
        """Return the hours a span touches in which records of a block fall, each with their bits."""
        start = block << 32 | _HOURS
        found = self._db.execute(
            "SELECT id, places FROM bits WHERE id BETWEEN ? AND ?", (start + first // _HOUR_MS, start + last // _HOUR_MS)
        )
        return [(identity - start, _unpacked(places)) for identity, places in found]

    def _named(self, block: int, names: Sequence[int]) -> int:
        marks = ",".join("?" * len(names))
        found = self._db.execute(f"SELECT place FROM names WHERE block = ? AND name IN ({marks})", (block, *names))  # noqa: S608 - only marks
        return _as_bits(place % _BLOCK for (place,) in found)

    def _any(self, block: int, words: Iterable[int | None]) -> int:
        """Return the bits of the records of a block that have one of some words; None: a word that no record has."""
        bits = 0
        for word in words:
            if word is not None:
                bits |= _unpacked(self._get(block << 32 | word))
        return bits

    def _words_of(self, row: dict[str, Any], at: int | None) -> list[int]:
        words = [_EVERY]
        if at is not None:
            words.append(_HOURS + at // _HOUR_MS)
        for field, kind in _KINDS.items():
            value = row.get(field)
            if type(value) is kind:
                words.append(self._word(field, value))
        return words

    def _word(self, field: str, value: object) -> int:
        """Return the number of a word, a new one where there is none yet."""
        word = self._words.get((field, value))
        if word is None:
            word = self._known(field, value)
            if word is None:
                word = self._db.execute("INSERT INTO words (field, text) VALUES (?, ?)", (field, str(value))).lastrowid
            assert word is not None
            if len(self._words) >= _WORDS_KEPT:
                self._words.clear()
            self._words[field, value] = word
        return word

    def _known(self, field: str, value: object) -> int | None:
        # What a command line was given need not be text.
        with suppress(UnicodeEncodeError):
            found = self._db.execute("SELECT id FROM words WHERE field = ? AND text = ?", (field, str(value))).fetchone()
            return int(found[0]) if found else None
        return None

    def _drop(self, start: int, end: int) -> None:
        """Drop what stands from a place up to another."""
        if start >= end:
            return
        self._db.execute("DELETE FROM records WHERE place >= ? AND place < ?", (start, end))
        for block in range(start // _BLOCK, -(-end // _BLOCK)):
            self._db.execute("DELETE FROM names WHERE block = ? AND place >= ? AND place < ?", (block, start, end))
            kept = ~_places_from(start - block * _BLOCK) | _places_from(end - block * _BLOCK)
            span = (block << 32, (block + 1 << 32) - 1)
            if not kept & _places_from(0):
                self._db.execute("DELETE FROM bits WHERE id BETWEEN ? AND ?", span)
                continue
            for identity, places in self._db.execute("SELECT id, places FROM bits WHERE id BETWEEN ? AND ?", span).fetchall():
                self._put(identity, _joined(b"", list(_listed(_unpacked(places) & kept, newest_first=False))))

    def _get(self, identity: int) -> bytes:
        found = self._db.execute("SELECT places FROM bits WHERE id = ?", (identity,)).fetchone()
        return found[0] if found else b""

    def _put(self, identity: int, places: bytes) -> None:
        if places:
            self._db.execute("INSERT OR REPLACE INTO bits VALUES (?, ?)", (identity, places))
        else:
            self._db.execute("DELETE FROM bits WHERE id = ?", (identity,))

    def _offset(self, place: int) -> int:
        return int(self._db.execute("SELECT offset FROM records WHERE place = ?", (place,)).fetchone()[0])

    def _blocks(self) -> range:
        return range(self._first() // _BLOCK, -(-self._size() // _BLOCK))

    def _first(self) -> int:
        """Return the first place there is; the size where there is none."""
        found = self._db.execute("SELECT min(place) FROM records").fetchone()[0]
        return self._size() if found is None else int(found)

    def _size(self) -> int:
        return int(self._db.execute("SELECT size FROM extent").fetchone()[0])

    @contextmanager
    def _transaction(self, to: Literal["read", "write"] = "read") -> Iterator[None]:
        """Let all that is asked be asked of one state, and all that is written be written at once."""
        try:
            self._db.execute("BEGIN IMMEDIATE" if to == "write" else "BEGIN")
            yield
            self._db.execute("COMMIT")
        except BaseException as error:
            # Words that it made are undone with it.
            self._words.clear()
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise _told(self._path, error) from error
            raise


def moment(at: object) -> int | None:
    """Return the instant that `audit.rfc3339` wrote, in milliseconds since 1970; None for what it did not write."""
    if not isinstance(at, str) or _WRITTEN.fullmatch(at) is None:
        return None
    second = _second(at[:19])
    return None if second is None else second * 1000 + int(at[20:23])


@lru_cache(maxsize=256)
def _second(text: str) -> int | None:
    try:
        return int(datetime.fromisoformat(f"{text}+00:00").timestamp())
    except ValueError:
        return None


def _written(at: int) -> str:
    """Undo `moment`; a float of seconds could be a millisecond short."""
    return f"{rfc3339(at // 1000)[:19]}.{at % 1000:03d}Z"


def _day(number: int) -> str:
    return _written(number * _DAY_HOURS * _HOUR_MS)[:10]


def _span(since: float | None, until: float | None) -> tuple[int, int]:
    """Return the milliseconds from and to which records are asked for, as `audit.rfc3339` would write them."""
    first = _FIRST_MS if since is None else max(int(since * 1000), _FIRST_MS)
    last = _LAST_MS if until is None else min(int(until * 1000), _LAST_MS)
    return min(first, _LAST_MS + 1), max(last, _FIRST_MS - 1)


def _opened(path: Path, read_only: bool) -> sqlite3.Connection:
    """Return a connection to a sound file of this version. Raises: BrokenIndex, OSError."""
    if not read_only:
        path.touch(mode=0o600)
    elif not path.exists():
        raise _broken(path, "it is not there")
    # A sealer's rounds may take turns between threads; never two at once.
    db = None
    try:
        db = sqlite3.connect(_address(path, read_only), uri=True, isolation_level=None, check_same_thread=False)
        db.execute(f"PRAGMA cache_size = -{_CACHE_KB}")
        if not read_only:
            db.execute("PRAGMA journal_mode = WAL")
            # After a power cut the newest rows may be missing, which are then made again; the file is whole.
            db.execute("PRAGMA synchronous = NORMAL")
            if not db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                db.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {_VERSION}; COMMIT")
            if (found := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                raise _broken(path, found.splitlines()[0])
        if db.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
            raise _broken(path, "another version of the gateway made it")
        db.execute("SELECT size FROM extent").fetchone()
        return db
    except (sqlite3.Error, BrokenIndex) as error:
        if db is not None:
            db.close()
        if isinstance(error, sqlite3.Error):
            raise _told(path, error) from error
        raise


def _address(path: Path, read_only: bool) -> str:
    found = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rw'}"
    if read_only and not os.access(path.parent, os.W_OK) and not path.with_name(f"{path.name}-wal").exists():
        # Nobody writes it now, and what SQLite makes to learn of writers cannot be made in a folder that is for reading alone.
        found += "&immutable=1"
    return found


def _told(path: Path, error: sqlite3.Error) -> BrokenIndex | OSError:
    if error.sqlite_errorcode & 0xFF in _UNSOUND:
        return _broken(path, str(error))
    return OSError(f"{path}: {error}")


def _broken(path: Path, reason: str) -> BrokenIndex:
    return BrokenIndex(f"{path} cannot be used, {reason}: `gateway audit seal` makes it anew when it starts")


def _decoded(record: bytes) -> dict[str, Any]:
    """Return what a record says; nothing where it is none: an odd one must not hide all others."""
    try:
        return _read(record)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}


def _names_of(row: dict[str, Any]) -> set[int]:
    found = {_name("number", value) for field in NUMBER_FIELDS if isinstance(value := row.get(field), str)}
    if isinstance(request_id := row.get("request_id"), str):
        found.add(_name("request_id", request_id))
    return found


def _name(field: str, text: str) -> int:
    """Return the 64 bits by which a name is known: two of ten million are one with a chance of 1 to 370,000."""
    digest = sha256(f"{field} {text}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _joined(places: bytes, more: list[int]) -> bytes:
    """Add places within a block to those that are kept, in the shorter form."""
    if len(places) < _BITMAP_BYTES and len(places) // 2 + len(more) < _LISTED_MAX:
        return places + array("H", more).tobytes()
    bitmap = bytearray(_unpacked(places).to_bytes(_BITMAP_BYTES, "little"))
    for place in more:
        bitmap[place >> 3] |= 1 << (place & 7)
    return bytes(bitmap)


def _unpacked(places: bytes) -> int:
    """Return kept places as bits, the first place lowest."""
    return int.from_bytes(places, "little") if len(places) == _BITMAP_BYTES else _as_bits(array("H", places))


def _as_bits(places: Iterable[int]) -> int:
    bitmap = bytearray(_BITMAP_BYTES)
    for place in places:
        bitmap[place >> 3] |= 1 << (place & 7)
    return int.from_bytes(bitmap, "little")


def _places_from(low: int) -> int:
    """Return the bits of all places of a block from one up, which may stand before the block or behind it."""
    low = min(max(low, 0), _BLOCK)
    return (1 << _BLOCK) - (1 << low)


def _listed(bits: int, newest_first: bool) -> Iterator[int]:
    """Yield the places that bits stand for, upwards or downwards."""
    # Found in its text, a bit takes no arithmetic on all of them.
    text = f"{bits:b}"
    if newest_first:
        at = text.find("1")
        while at >= 0:
            yield len(text) - 1 - at
            at = text.find("1", at + 1)
    else:
        at = text.rfind("1")
        while at >= 0:
            yield len(text) - 1 - at
            at = text.rfind("1", 0, at)
