"""Pieces of the ledger by themselves: the journal's files, the breaker's probe, what is read of live changes."""

from __future__ import annotations

import asyncio
import fcntl
import functools
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from gateway.ledger import journal as journals
from gateway.ledger.batch import Batch, LedgerDown
from gateway.ledger.journal import Journal
from gateway.ledger.limits import Change, live, read_changes


def in_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run a test in a loop of its own."""

    @functools.wraps(test)
    def run(**fixtures: object) -> None:
        asyncio.run(test(**fixtures))  # type: ignore[arg-type]

    return run


GOOD = b'{"stage":"intent","writer":"w","seq":1,"at":"2030-01-31T12:30:00.123Z"}'


async def half_written(folder: Path) -> tuple[Journal, asyncio.Future[None]]:
    """Return a journal whose one record is being brought to the disk."""
    journal = Journal(folder, "w")
    journal.add(GOOD)
    writing = asyncio.ensure_future(journal.flush())
    await asyncio.sleep(0)
    return journal, writing


@in_loop
async def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a short write left is taken back, so that the next record stands on a line of its own."""
    journal = Journal(tmp_path, "w")
    real, calls = os.write, 0

    def short(file: int, data: bytes) -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            return real(file, data[:10])
        raise OSError(28, "full")

    journal.add(GOOD)
    monkeypatch.setattr(journals.os, "write", short)
    with pytest.raises(OSError, match="full"):
        await journal.flush()
    monkeypatch.undo()

    assert (tmp_path / "w.jsonl").read_bytes() == b""
    await journal.flush()
    assert (tmp_path / "w.jsonl").read_bytes() == GOOD + b"\n"
    await journal.aclose()


@in_loop
async def test_what_is_no_record_is_set_aside(tmp_path: Path) -> None:
    """A dead writer's damaged lines are counted and kept apart; its records are taken over."""
    lines = (b'{"stage":"int' + GOOD, b"\xff\x00", b"{}", GOOD.replace(b"2030-01", b"once"), GOOD)
    (tmp_path / "dead.jsonl").write_bytes(b"\n".join(lines) + b'\n{"stage"')

    journal = Journal(tmp_path, "w")

    assert journal.damaged == 4
    assert journal.head(9) == [GOOD]
    assert (tmp_path / "damaged").read_bytes() == b"\n".join(lines[:4]) + b"\n"
    assert not (tmp_path / "dead.jsonl").exists()
    await journal.aclose()


@in_loop
async def test_an_idle_journal_is_empty_on_disk(tmp_path: Path) -> None:
    """Records that Redis took while they were being written are not there for a successor to open again."""
    journal, writing = await half_written(tmp_path)
    journal.drop(1)
    await writing

    assert (tmp_path / "w.jsonl").read_bytes() == b""
    await journal.aclose()


@in_loop
async def test_a_journal_that_closes_writes_each_record_once(tmp_path: Path) -> None:
    """Also where a write is under way, and something came after it."""
    journal, writing = await half_written(tmp_path)
    later = GOOD.replace(b'"seq":1', b'"seq":2')
    journal.add(later)
    await journal.aclose()
    await writing

    assert (tmp_path / "w.jsonl").read_bytes() == GOOD + b"\n" + later + b"\n"


def test_a_file_that_an_heir_removed_is_opened_anew(tmp_path: Path) -> None:
    """Who inherits may hold a new writer's file for a moment and remove it; the writer then has another, on the disk."""
    path = tmp_path / "w.jsonl"
    heir = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(heir, fcntl.LOCK_EX)
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(journals._locked, path)
        with pytest.raises(TimeoutError):
            opening.result(timeout=0.3)
        path.unlink()
        os.close(heir)
        file = opening.result(timeout=30)

    assert os.path.samestat(os.fstat(file), path.stat())
    os.close(file)


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
