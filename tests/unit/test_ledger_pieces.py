"""Pieces of the ledger by themselves: the journal's files, the breaker's probe, what is read of live changes."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from gateway.audit import Record
from gateway.floods import Floods
from gateway.ledger import journal as journals
from gateway.ledger.batch import Batch, LedgerDown
from gateway.ledger.chain import Chain, Link
from gateway.ledger.journal import Bounds, Journal, drop_torn_line, locked, read_lines
from gateway.ledger.limits import Change, live, read_changes
from gateway.ledger.names import Names
from gateway.ledger.writer import TrailWriter


def in_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run a test in a loop of its own."""

    @functools.wraps(test)
    def run(**fixtures: object) -> None:
        asyncio.run(test(**fixtures))  # type: ignore[arg-type]

    return run


BOUNDS = Bounds(1 << 20, 60.0, 0)


def links(count: int, chain: Chain | None = None) -> list[Link]:
    chain = chain or Chain("w")
    return [chain.link(Record(stage="beat", at="2030-01-31T12:30:00.123Z", account="a")) for _ in range(count)]


def lines(folder: Path) -> list[bytes]:
    return [line for path in sorted(folder.glob("w.*.jsonl")) for line in path.read_bytes().splitlines()]


@in_loop
async def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a short write left is taken back, so that the next record stands on a line of its own."""
    journal = Journal(tmp_path, "w", BOUNDS)
    first, second = links(2)
    real, calls = os.write, 0

    def short(file: int, data: bytes) -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            return real(file, data[:10])
        raise OSError(28, "full")

    journal.add(first)
    monkeypatch.setattr(journals.os, "write", short)
    with pytest.raises(OSError, match="full"):
        await journal.sync()
    assert journal.broken
    monkeypatch.undo()
    assert lines(tmp_path) == []
    journal.add(second)
    await journal.sync()

    assert not journal.broken
    assert lines(tmp_path) == [first.record, second.record]
    await journal.aclose(sealed=False)


@in_loop
async def test_those_who_come_together_share_one_write_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each returns when its own record is on the disk; fifty take two flushes, not fifty."""
    journal = Journal(tmp_path, "w", BOUNDS)
    flushed, real = [], os.fdatasync

    def counting(file: int) -> None:
        flushed.append(len(lines(tmp_path)))
        real(file)

    monkeypatch.setattr(journals.os, "fdatasync", counting)

    async def keep(link: Link) -> None:
        journal.add(link)
        await journal.sync()

    await asyncio.gather(*map(keep, links(50)))

    assert flushed[-1] == 50
    assert len(flushed) <= 2
    await journal.aclose(sealed=False)


@in_loop
async def test_a_journal_keeps_what_is_not_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole segments go once they are sealed; the rest can be read again from any record on."""
    monkeypatch.setattr(journals, "SEGMENT_BYTES", 1000)
    journal = Journal(tmp_path, "w", BOUNDS)
    made = links(40)
    for link in made:
        journal.add(link)
        journal.write()
    assert len(list(tmp_path.glob("w.*.jsonl"))) > 3
    assert list(journal.read_from(17)) == made[17:]

    assert journal.forget(done=20, taken=39) == 0

    kept = list(journal.read_from(0))
    assert kept == made[kept[0].seq :]
    assert 0 < kept[0].seq <= 21
    # Nor is a file held that is no more: nobody would see what fills the disk.
    held = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    assert not [path for path in held if path.startswith(str(tmp_path)) and "(deleted)" in path]
    await journal.aclose(sealed=True)
    assert not list(tmp_path.iterdir())


@in_loop
async def test_what_an_open_intent_stands_in_is_kept(tmp_path: Path) -> None:
    """Also when it is sealed: of a killed process, nothing else may tell its heir that it has to be closed."""

    async def nothing(*_: object) -> list[object]:
        raise AssertionError("nothing is sent")

    names, journal = Names("a"), Journal(tmp_path, "w-1", BOUNDS)
    batch = Batch(nothing, 1.0, nothing, lambda *_: None, names.probe)
    trail = TrailWriter(names, "w-1", journal, batch, float, lambda _: None, lambda _: Record(stage="open", at="", account="a"))
    assert trail.done == -1
    made = [trail.write(Record(stage="intent", at="", account="a")) for _ in range(3)]
    trail.sealed = 2
    assert trail.done == -1
    for number, reached in ((1, -1), (0, 1), (2, 2)):
        trail.write(Record(stage="outcome", at="", account="a", intent=f"w-1-{made[number].seq}"))
        assert trail.done == reached
    await journal.aclose(sealed=True)


@in_loop
async def test_a_journal_that_nobody_seals_stays_within_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it goes what Redis has, and is told; what Redis lacks stays."""
    monkeypatch.setattr(journals, "SEGMENT_BYTES", 1000)
    journal = Journal(tmp_path, "w", Bounds(3000, 60.0, 0))
    made = links(40)
    for link in made:
        journal.add(link)
        journal.write()

    assert journal.forget(done=-1, taken=9) == 1
    assert next(journal.read_from(0)).seq <= 10
    assert journal.forget(done=-1, taken=39) > 1
    assert sum(path.stat().st_size for path in tmp_path.glob("*.jsonl")) <= 4000
    await journal.aclose(sealed=False)


@in_loop
async def test_the_files_of_a_closed_journal_stay_until_they_are_sealed(tmp_path: Path) -> None:
    """And a journal that was never written to leaves nothing behind."""
    journal = Journal(tmp_path, "w", BOUNDS)
    (link,) = links(1)
    journal.add(link)
    await journal.aclose(sealed=False)
    idle = Journal(tmp_path, "idle", BOUNDS)
    await idle.aclose(sealed=False)

    assert lines(tmp_path) == [link.record]
    assert {path.name for path in tmp_path.iterdir()} == {"w.000000000000.jsonl", "w.lock"}


def test_a_lock_that_was_removed_is_nobodys(tmp_path: Path) -> None:
    """Who holds a dead writer's lock may remove it with its files: whoever waited for it takes a new one."""
    heir = locked(tmp_path, "w")
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(locked, tmp_path, "w")
        with pytest.raises(TimeoutError):
            opening.result(timeout=0.3)
        with pytest.raises(OSError):
            locked(tmp_path, "w", wait=False)
        (tmp_path / "w.lock").unlink()
        os.close(heir)
        file = opening.result(timeout=30)

    assert os.path.samestat(os.fstat(file), (tmp_path / "w.lock").stat())
    os.close(file)


def test_what_is_no_record_is_told_apart(tmp_path: Path) -> None:
    """A dead writer's damaged lines are counted; half a line at the end is none, and is taken off."""
    path = tmp_path / "w.000000000000.jsonl"
    first, second = links(2)
    path.write_bytes(b"\n".join((first.record, b"\xff\x00", b"{}", second.record, b'{"stage"')))

    damaged: list[bytes] = []
    assert [link for link, _ in read_lines(path, damaged)] == [first, second]
    assert damaged == [b"\xff\x00", b"{}"]
    drop_torn_line(path)
    assert path.read_bytes().endswith(second.record + b"\n")


def test_floods_are_summed_and_none_is_dropped() -> None:
    """Beyond a hundred a second of one kind the rest become one record with their number; what closes an intent never does."""
    floods = Floods()

    def refusal(**more: object) -> Record:
        return Record(stage="refusal", at="2030-01-31T12:30:00.123Z", account="a", problem="credential_unknown", **more)  # type: ignore[arg-type]

    told = sum(not floods.swallow(refusal(), 10.0 + number / 1000) for number in range(350))
    told += sum(not floods.swallow(refusal(source="10.0.0.9"), 10.5) for _ in range(5))
    assert not floods.swallow(refusal(intent="w-1"), 10.6)
    assert list(floods.over(10.9)) == []
    (summed,) = floods.over(11.5)

    assert (told, summed.count) == (105, 250)
    assert list(floods.over(12.0, at_once=True)) == []
    assert floods.swallow(refusal(), 13.0, always=True)
    assert [record.count for record in floods.over(13.0, at_once=True)] == [1]


def test_ever_new_kinds_fill_no_memory() -> None:
    """Who sends from ever new addresses is summed by the problem alone."""
    floods = Floods()
    for number in range(5000):
        floods.swallow(Record(stage="refusal", at="x", account="a", problem="p", source=str(number)), 0.0)

    assert len(floods._kinds) <= 1001
    assert sum(record.count for record in floods.over(9.0)) == 5000 - 1000 - 100


@in_loop
async def test_a_probe_that_breaks_is_made_again() -> None:
    """Whatever a look for Redis raised, the next one closes the breaker."""
    answers: list[object] = [OSError("away"), RuntimeError("nobody foresaw this"), b"OK", b"OK"]

    async def exchange(commands: object) -> list[object]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return [answer]

    async def reconnect() -> None:
        raise RuntimeError("nor this")

    batch = Batch(exchange, 1.0, reconnect, lambda up, why: None, "probe")
    with pytest.raises(LedgerDown) as first:
        await batch.submit("GET", "x")
    assert first.value.sent
    with pytest.raises(LedgerDown) as second:
        await batch.submit("GET", "x")
    assert not second.value.sent
    async with asyncio.timeout(30):
        while batch.down:
            await asyncio.sleep(0.05)
    assert await batch.submit("GET", "x") == b"OK"
    await batch.aclose()


def test_what_cannot_be_read_of_live_changes_counts_as_none() -> None:
    """Odd targets and texts stop nobody; what has ended is told apart, to be removed."""
    good = msgspec.json.encode(Change(terms={"rate": "1/s"}, until_us=20, operator="o", why="w"))
    over = msgspec.json.encode(Change(terms={"rate": "1/s"}, until_us=10, operator="o", why="w"))

    changes = read_changes([b"7", 10, [b"caller", good, b"\xff", good, b"number", b"{", b"old", over]])

    assert list(changes.by_target) == ["caller"]
    assert changes.ended == (b"old",)
    assert live(changes).until_us == 20


def test_each_change_ends_when_it_was_said_to() -> None:
    """What was set first is neither lengthened nor cut short by what is set beside it."""
    first = Change(terms={"rate": "1/s", "burst": 3}, until_us=100, operator="a", why="x")

    both = first.with_terms({"burst": 9}, 50, "b", "y")

    assert both.terms == {"rate": "1/s", "burst": 9}
    assert both.at(50).terms == {"rate": "1/s"}
    assert both.at(100) is None
    later = both.with_terms({"mode": "shadow"}, 200, "c", "z")
    assert later.at(49).terms == {"rate": "1/s", "burst": 9, "mode": "shadow"}
    assert later.at(150).terms == {"mode": "shadow"}
    assert later.at(200) is None
