"""One ledger by itself before a real Redis: what callers of the whole gateway could see only by rare chance."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from gateway import config
from gateway.admission import Policies
from gateway.audit import Auditor, Record, change
from gateway.errors import Problem, Refusal
from gateway.ledger import batch as batches
from gateway.ledger.connect import connect
from gateway.ledger.journal import Bounds, Journal
from gateway.ledger.limits import Change
from gateway.ledger.names import KEYS_TAG, Names
from gateway.ledger.registry import KeyRegistry
from gateway.ledger.store import Away, RedisLedger
from gateway.model import Admission, Arrival, Attempt, Bindings, Call, Caller, PhoneNumber, Secret
from gateway.numbers import Pseudonyms
from tests.running import Redis

NAMES = Names("a")
PSEUDONYMS = Pseudonyms(Secret("x" * 32), "k1")
AUDITOR = Auditor("a", PSEUDONYMS)
CALL = Call(Caller("crm", "k", Bindings(), key_version=1), "a", "end", {"m1": PhoneNumber("1", "+911", "IN")})


def intent() -> Record:
    return AUDITOR.intent(Arrival("r" * 32, 0.0, b""), CALL, Attempt(1, "primary", "v"))


async def admit(ledger: RedisLedger, epoch: int) -> object:
    """Return what became of one call: the admission, or the problem of the refusal."""
    policies = Policies(config.read_policies(config.BUILT_IN), "a", PSEUDONYMS, 1000)
    try:
        return await ledger.admit(CALL, policies.charges(CALL), intent(), epoch, None, policies.live)
    except Refusal as refusal:
        return refusal.problem


def with_ledger(redis: Redis, folder: Path, work: Callable[[RedisLedger], Awaitable[None]]) -> None:
    """Run something with a ledger that was opened, and close it."""

    async def run() -> None:
        ledger = RedisLedger(
            connect(config.Redis(url=redis.url), None, read_seconds=None), "a", "w", Journal(folder / "journal", "w", Bounds(2**28, 86_400, 0)), 10.0,
            Away(spool=True, stale_seconds_max=900), time.monotonic, lambda *_: None, time.time,
        )  # fmt: skip
        await ledger.open()
        await work(ledger)
        await ledger.aclose()

    asyncio.run(run())


def test_who_knows_less_than_redis_did_decides_nothing(redis: Redis, tmp_path: Path) -> None:
    """A process whose keys are older than the last epoch it heard of refuses without Redis; one that has them goes on."""
    found: list[object] = []

    async def admit_both(ledger: RedisLedger) -> None:
        redis.kill()
        found.extend([await admit(ledger, 6), await admit(ledger, 7)])

    with redis.client() as client:
        client.set(NAMES.epoch, 7)

    with_ledger(redis, tmp_path, admit_both)

    older, as_new = found
    assert older is Problem.ledger_unavailable
    assert isinstance(as_new, Admission)
    assert as_new.verdict.degraded
    (segment,) = (tmp_path / "journal").glob("w.*.jsonl")
    assert b'"degraded":true' in segment.read_bytes().splitlines()[-1]


def test_nobody_counts_beside_a_redis_that_is_there(redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More waits to be sent than can be: the call is refused, and this process' share of the limits is not touched."""
    found: list[object] = []

    async def overloaded(ledger: RedisLedger) -> None:
        monkeypatch.setattr(batches, "_WAITING_MAX", 0)
        found.append(await admit(ledger, 0))
        monkeypatch.undo()
        assert ledger.degraded == 0
        assert not ledger.down
        found.append(await admit(ledger, 0))

    with_ledger(redis, tmp_path, overloaded)

    assert found[0] is Problem.ledger_unavailable
    assert isinstance(found[1], Admission)
    assert not found[1].verdict.degraded


@pytest.mark.parametrize("broken", [NAMES.audit, NAMES.open])
def test_what_redis_does_not_take_of_a_settlement_waits_in_the_journal(redis: Redis, tmp_path: Path, broken: str) -> None:
    """The record, or the mark that its intent is closed: one that is refused, and be it by a key of the wrong type."""

    async def settle(ledger: RedisLedger) -> None:
        with redis.client() as client:
            client.set(broken, "of another type")
        record = intent()
        record.intent = "w-7"
        ledger.settle(record)
        await ledger.ping()
        await asyncio.sleep(0.05)
        assert ledger.waiting == 1
        with redis.client() as client:
            client.delete(broken)

    with_ledger(redis, tmp_path, settle)

    with redis.client() as client:
        assert client.xlen(NAMES.audit) == 1


def test_any_number_of_ended_changes_is_read_and_removed(redis: Redis, tmp_path: Path) -> None:
    """More than a script can return one by one; the next change removes them, and they are in nobody's way."""
    over = msgspec.json.encode(Change(terms={"rate": "1/s"}, until_us=1, operator="o", why="w"))
    with redis.client() as client:
        client.hset(NAMES.limits, mapping={f"caller:c{number}": over for number in range(9000)})

    async def change(ledger: RedisLedger) -> None:
        before = await ledger.changes()
        assert (len(before.by_target), len(before.ended)) == (0, 9000)
        until = before.now_us + 60_000_000
        made = Change(terms={"rate": "1/s"}, until_us=until, operator="o", why="w")
        assert await ledger.change(before, [("caller:crm", made, intent())])
        assert list((await ledger.changes()).by_target) == ["caller:crm"]

    with_ledger(redis, tmp_path, change)

    with redis.client() as client:
        assert client.hkeys(NAMES.limits) == [b"caller:crm"]


def test_records_go_on_after_one_that_nobody_knows_of(redis: Redis) -> None:
    """Redis stood still, then lost all it had: what was refused may stand there or not, and what comes next does, once."""

    async def run() -> None:
        registry = KeyRegistry(connect(config.Redis(url=redis.url), None, read_seconds=None), ("a",), "host-w", 1.5, time.time)

        async def recorded(what: str) -> bool:
            try:
                await registry.record(change(what, at=time.time(), request_id=what, account="a", operator="ops"))
            except Refusal as refusal:
                assert refusal.problem is Problem.ledger_unavailable
                return False
            return True

        async def recorded_in_the_end(what: str) -> None:
            async with asyncio.timeout(20):
                while not await recorded(what):
                    await asyncio.sleep(0.05)

        assert await recorded("first")
        redis.process.signal(signal.SIGSTOP)
        assert not await recorded("doubtful")
        redis.process.signal(signal.SIGCONT)
        await recorded_in_the_end("second")
        with redis.client() as client:
            rows = [msgspec.json.decode(fields[b"r"], type=Record) for _, fields in client.xrange(Names(KEYS_TAG).audit)]
            client.flushall()
        assert not await recorded("lost")
        await recorded_in_the_end("third")
        await registry.aclose()

        told = [row.change for row in rows]
        assert (told.count("first"), told.count("second"), told.count("doubtful") <= 1) == (1, 1, True)
        assert [row.seq for row in rows if row.change == "second"] == [0]

    asyncio.run(run())
