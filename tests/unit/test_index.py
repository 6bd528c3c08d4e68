"""The index of the archive finds what a reading of every record finds, survives odd ones, and is made anew where it is broken."""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.audit import rfc3339
from gateway.trail.index import BrokenIndex, Day, Entry, Index, PseudonymKey, Query, moment

START = 1_893_456_000.0
VALUES: dict[str, list[Any]] = {
    "stage": ["intent", "outcome", "refusal", "abort", "change"], "account": ["main", "other"], "service": ["crm", "billing"],
    "key_id": ["k1", "k2"], "source": ["10.0.0.1", "::1"], "decision": ["allowed", "denied"],
    "result": ["answered", "refused", "failed", "unknown"], "problem": ["malformed"], "code": [1500, 1504],
    "request_id": ["r1", "r2", "Ж"], "m1": ["a" * 32, "b" * 32], "m2": ["a" * 32, "c" * 32], "mask": ["c" * 32],
    "pseudonym_key": ["p1", "p2"],
}  # fmt: skip
# Hours apart, to the millisecond, with the borders of an hour; and a clock that was wrong.
TIMES = [0.0, 0.001, 3599.999, 3600.0, 3600.5, 7200.25, 86_399.999, 86_400.0, 200_000.0, -START]
odd = st.sampled_from([None, "", "x\u0000y", 7.5, -1, 10**40, [], ["crm"], {"a": 1}, "é" * 400])
at = st.sampled_from(TIMES).map(lambda seconds: rfc3339(START + seconds))


def fields() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in VALUES.items()})


def records(most: int = 40) -> st.SearchStrategy[list[dict[str, Any]]]:
    whole = st.builds(lambda row, when: {**row, "at": when}, fields(), at)
    return st.lists(whole, max_size=most).map(
        lambda rows: [{"writer": f"w{place % 2}", "seq": place // 2, **row} for place, row in enumerate(rows)]
    )


def queries() -> st.SearchStrategy[Query]:
    sought = {name: st.sampled_from(values) for name, values in VALUES.items() if name in Query.__slots__}
    instant = st.sampled_from(TIMES).map(lambda seconds: START + seconds)
    several = st.lists(st.sampled_from(["a" * 32, "b" * 32, "c" * 32, "d" * 32]), max_size=2).map(tuple)
    return st.fixed_dictionaries({}, optional={**sought, "since": instant, "until": instant, "pseudonyms": several}).map(
        lambda given: Query(**given)
    )


def entries(rows: list[Any], first: int = 0, stride: int = 1) -> list[Entry]:
    found, offset = [], 0
    for place, row in zip(count(first * stride, stride), rows, strict=False):
        line = row if isinstance(row, bytes) else json.dumps(row).encode()
        found.append(Entry(place, offset, line))
        offset += len(line) + 1
    return found


def wanted(query: Query, found: list[Entry]) -> list[tuple[int, int]]:
    """What a reading of every record finds."""
    return [(entry.place, entry.offset) for entry in found if query.matches(json.loads(entry.record))]


@contextmanager
def opened(found: list[Entry], batch: int = 7) -> Iterator[Index]:
    with tempfile.TemporaryDirectory() as folder:
        index = Index(Path(folder) / "index.sqlite")
        try:
            for start in range(0, len(found), batch):
                index.add(found[start : start + batch])
            yield index
        finally:
            index.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.sqlite"


patient = settings(deadline=None, max_examples=60)
strides = st.sampled_from([1, 9000])
"""How far apart records stand: in one block, or in many."""


@patient
@given(records(), strides, st.lists(queries(), max_size=5), st.booleans())
def test_found_is_what_matches(rows: list[dict[str, Any]], stride: int, asked: list[Query], newest_first: bool) -> None:
    """Any combination of conditions finds the records that hold them all, in order."""
    found = entries(rows, 11, stride)
    with opened(found) as index:
        for query in asked:
            expected = wanted(query, found)
            assert index.find(query, newest_first=newest_first, limit=1000) == (expected[::-1] if newest_first else expected)


@patient
@given(records(), strides, queries(), st.integers(1, 5), st.booleans())
def test_pages_are_the_whole(rows: list[dict[str, Any]], stride: int, query: Query, limit: int, newest_first: bool) -> None:
    """Page after page, each from where the last one ended, tells everything once."""
    found = entries(rows, 0, stride)
    with opened(found) as index:
        told: list[tuple[int, int]] = []
        after, before = -1, 1_000_000
        while page := index.find(query, after=after, before=before, newest_first=newest_first, limit=limit):
            assert len(page) <= limit
            told += page
            after, before = (after, page[-1][0]) if newest_first else (page[-1][0], before)

        assert sorted(told) == wanted(query, found)
        assert told == sorted(told, reverse=newest_first)


@patient
@given(records(), strides, queries(), st.integers(0, 45), st.integers(0, 45), records(10))
def test_what_is_cut_and_forgotten_is_gone(
    rows: list[dict[str, Any]], stride: int, query: Query, before: int, size: int, more: list[dict[str, Any]]
) -> None:
    """What remains is found, nothing else is, and what takes the places of the cut is found instead."""
    before, size = before * stride, size * stride
    found = entries(rows, 0, stride)
    with opened(found) as index:
        end = index.size
        index.forget(before)
        assert index.size == end
        index.cut(size)
        kept = [entry for entry in found if before <= entry.place < size]
        assert index.size == min(size, end)
        assert index.find(query, limit=1000) == wanted(query, kept)

        # Over some of the last, and behind them.
        added = entries(more, max(index.size // stride - 3, 0), stride)
        index.add(added)
        kept = sorted({**{entry.place: entry for entry in kept}, **{entry.place: entry for entry in added}}.values())
        assert index.find(query, limit=1000) == wanted(query, kept)
        assert index.find(Query(), limit=1000) == wanted(Query(), kept)


@patient
@given(st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys((*VALUES, "at", "writer", "seq"), odd)), max_size=20), queries())
def test_an_odd_record_hides_no_other(rows: list[dict[str, Any]], query: Query) -> None:
    """Whatever fields hold, the record has its place, and is found by what is sound in it."""
    sound = {"writer": "w", "seq": 3, "at": rfc3339(START), **{name: values[0] for name, values in VALUES.items()}}
    others = [b"", b"[]", b"{", b"null", b"\xff", b'"x"', b'{"seq":1e999}', b"[" * 5000]
    found = entries([*rows, *others, sound])
    with opened(found) as index:
        last = (found[-1].place, found[-1].offset)
        assert (last in index.find(query, limit=1000)) == query.matches(sound)
        assert len(index.find(Query(), limit=1000)) == len(found)
        assert index.place_of("w", 3) == last[0]
        index.report()
        index.pseudonym_keys()
        index.forget(len(rows))
        index.cut(len(rows))


@patient
@given(records(), strides, st.sampled_from([None, *TIMES]), st.sampled_from([None, *TIMES]))
def test_the_report_counts_calls(rows: list[dict[str, Any]], stride: int, since: float | None, until: float | None) -> None:
    """By service and day: what closed in the span, and how."""
    span = Query(since=None if since is None else START + since, until=None if until is None else START + until)
    closed = [row for row in rows if row.get("stage") in ("outcome", "refusal", "abort") and span.matches(row)]
    calls = Counter((row["at"][:10], row.get("service")) for row in closed)
    results = Counter((row["at"][:10], row.get("service"), row.get("result")) for row in closed)
    expected = [
        Day(service, day, calls[day, service], *(results[day, service, result] for result in VALUES["result"]))
        for day, service in sorted(calls, key=lambda key: (key[0], key[1] or ""))
    ]
    with opened(entries(rows, 0, stride)) as index:
        assert index.report(span.since, span.until) == expected


@patient
@given(records(), strides)
def test_the_pseudonym_keys_in_use(rows: list[dict[str, Any]], stride: int) -> None:
    """Each key with the number of its records, and the span of their time."""
    of = {key: [row["at"] for row in rows if row.get("pseudonym_key") == key] for key in VALUES["pseudonym_key"]}
    expected = [PseudonymKey(key, len(ats), min(ats), max(ats)) for key, ats in of.items() if ats]
    with opened(entries(rows, 0, stride)) as index:
        assert index.pseudonym_keys() == expected


def test_what_stood_there_before_is_found_no_more(path: Path) -> None:
    """A record in another's place is found by what it says itself, and by nothing of the other."""
    index = Index(path)
    index.add(entries([{"writer": "w", "seq": 1, "m1": "a", "request_id": "r", "service": "crm", "at": rfc3339(START)}] * 2))
    index.add(entries([{"service": "billing"}]))
    index.cut(1)
    index.add(entries([{}], first=1))

    for query in (Query(pseudonyms=("a",)), Query(request_id="r"), Query(service="crm"), Query(since=START)):
        assert index.find(query, limit=10) == []
    assert index.find(Query(service="billing"), limit=10) == [(0, 0)]
    assert index.place_of("w", 1) is None
    index.close()


def test_blocks_that_are_full() -> None:
    """Lists of places become bits where they are long, and beside the border of a block nothing is lost."""
    # The first source is rare enough to stay a list; a list of as many places as the first key has would be as long as bits.
    rows = [
        {"writer": "w", "seq": place, "at": rfc3339(START + place), "service": ("crm", "billing")[place % 2],
         "source": "10.0.0.1" if place % 1000 == 0 else "::1", "key_id": "k1" if place < 4096 else "k2"} for place in range(70_000)
    ]  # fmt: skip
    found = entries(rows)
    with opened(found, batch=9_000) as index:
        for query in (
            Query(service="crm"),
            Query(service="crm", source="10.0.0.1"),
            Query(service="billing", source="10.0.0.1"),
            Query(key_id="k1"),
            Query(service="crm", since=START + 65_000, until=START + 66_000),
            Query(since=START + 10_000.001, until=START + 10_001.999),
        ):
            assert index.find(query, limit=100_000) == wanted(query, found), query
        assert index.place_of("w", 69_999) == 69_999
        assert index.place_of("w", 70_000) is None
        assert index.place_of("v", 1) is None
        assert index.place_of("w", 2**70) is None
        index.forget(65_000)
        index.cut(66_000)
        kept = found[65_000:66_000]
        assert index.find(Query(service="crm"), limit=100_000) == wanted(Query(service="crm"), kept)


def test_an_index_is_read_while_it_is_written(path: Path) -> None:
    """Readers see whole batches, and the newest one that is written."""
    found = entries([{"writer": "w", "seq": number, "service": "crm"} for number in range(40)])
    writer = Index(path)
    reader = Index(path, read_only=True)
    assert (reader.size, reader.find(Query(), limit=1)) == (0, [])
    for start in range(0, 40, 10):
        writer.add(found[start : start + 10])
        assert (reader.size, reader.place_of("w", start + 9)) == (start + 10, start + 9)
        assert len(reader.find(Query(service="crm"), limit=1000)) == start + 10
    with pytest.raises(OSError, match="readonly"):
        reader.add(found)
    reader.close()
    writer.close()


def test_a_batch_is_added_whole_or_not_at_all(path: Path) -> None:
    """What fails in the middle leaves nothing, neither in the file nor in what is remembered of it."""
    index = Index(path)
    sound = entries([{"service": "crm"}])
    with pytest.raises(TypeError):
        index.add([*sound, Entry(1, 0, 5)])  # type: ignore[arg-type]
    assert (index.size, index.find(Query(), limit=10)) == (0, [])
    index.add(sound)
    assert index.find(Query(service="crm"), limit=10) == [(0, 0)]
    index.close()


def test_words_nobody_uses_are_dropped(path: Path) -> None:
    """Unknown keys that were tried go with their records; words that records still have stay."""
    index = Index(path)
    index.add(entries([{"writer": f"w{number}", "seq": 0, "key_id": f"tried{number}", "service": "crm"} for number in range(50)]))
    index.forget(48)
    index.add(entries([{"writer": "w50", "seq": 0, "key_id": "tried7"}], first=50))

    assert index.find(Query(key_id="tried7"), limit=10) == [(50, 0)]
    assert [place for place, _ in index.find(Query(service="crm"), limit=10)] == [48, 49]
    assert [index.place_of(f"w{number}", 0) for number in (47, 48, 49, 50)] == [None, 48, 49, 50]
    with sqlite3.connect(path) as other:
        assert other.execute("SELECT count(*) FROM words WHERE field = 'key_id'").fetchone() == (3,)
    other.close()
    index.close()


def broken_by(path: Path, how: str) -> None:
    if how == "no database":
        path.write_bytes(b"x" * 5000)
    elif how == "torn":
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
    elif how == "bent":
        data = path.read_bytes()
        path.write_bytes(data[:4096] + b"\x07" * (len(data) - 4096))
    elif how == "bent deep inside":
        with sqlite3.connect(path) as other:
            ((page,),) = other.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'names'")
        other.close()
        data = path.read_bytes()
        path.write_bytes(data[: (page - 1) * 4096] + b"\x07" * 4096 + data[page * 4096 :])
    else:
        with sqlite3.connect(path) as other:
            other.execute("PRAGMA user_version = 99" if how == "another version" else "DROP TABLE extent")
        other.close()


@pytest.mark.parametrize("how", ["no database", "torn", "bent", "bent deep inside", "another version", "no such table"])
def test_a_broken_index_is_made_anew(path: Path, how: str) -> None:
    """Who writes it begins again with an empty one, which takes all records again; who reads it is told."""
    found = entries([{"service": "crm", "request_id": f"r{number}"} for number in range(400)])
    index = Index(path)
    index.add(found)
    index.close()
    broken_by(path, how)

    with pytest.raises(BrokenIndex, match="index.sqlite cannot be used"):
        reader = Index(path, read_only=True)
        # What is bent far inside is met only where it is read.
        reader.find(Query(service="crm", request_id="r7"), limit=1000)
    index = Index(path)
    assert index.size == 0
    index.add(found)
    assert len(index.find(Query(service="crm"), limit=1000)) == 400
    index.close()


def test_no_index_is_told_to_be_none(path: Path) -> None:
    """A reader makes none."""
    with pytest.raises(BrokenIndex, match="not there"):
        Index(path, read_only=True)
    assert not path.exists()


def test_an_index_is_its_owners_alone(path: Path) -> None:
    """Nobody else may read it, nor what SQLite puts beside it."""
    index = Index(path)
    index.add(entries([{}]))
    assert {file.name: file.stat().st_mode & 0o077 for file in path.parent.iterdir()} == {
        "index.sqlite": 0,
        "index.sqlite-wal": 0,
        "index.sqlite-shm": 0,
    }
    index.close()


@pytest.mark.parametrize(
    ("text", "instant"),
    [("1970-01-01T00:00:00.000Z", 0), ("1969-12-31T23:59:59.999Z", -1), ("2030-01-31T12:30:00.123Z", 1_896_093_000_123)],
)
def test_an_instant_is_read(text: str, instant: int) -> None:
    """To the millisecond, before 1970 too."""
    assert moment(text) == instant


@pytest.mark.parametrize(
    "text",
    ["", "2030-13-01T00:00:00.000Z", "2030-01-31 12:30:00.123Z", "2030-01-31T12:30:00Z", "٢030-01-31T12:30:00.123Z", 5, None],
)
def test_what_is_no_instant(text: object) -> None:
    """Only what records are written with is read."""
    assert moment(text) is None


def test_a_folder_for_reading_alone_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no sealer runs, nothing that SQLite keeps for writers is there, nor can be made."""
    path = tmp_path / "index.sqlite"
    index = Index(path)
    index.add([Entry(0, 0, b'{"stage":"open","writer":"w","seq":0,"at":"2030-01-31T12:00:00.000Z","account":"a"}')])
    index.close()
    monkeypatch.setattr(os, "access", lambda *_: False)
    before = sorted(tmp_path.iterdir())

    reader = Index(path, read_only=True)
    assert reader.find(Query(stage="open"), limit=2) == [(0, 0)]
    assert sorted(tmp_path.iterdir()) == before
    reader.close()
