"""Writers before a real Redis: each record in the stream once, in its order, whatever Redis and the network lose."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gateway import config
from gateway.audit import Record, chained
from gateway.ledger import batch as batches
from gateway.ledger.batch import Batch, LedgerDown
from gateway.ledger.connect import Connection, connect
from gateway.ledger.heir import Heir
from gateway.ledger.journal import Bounds, Journal
from gateway.ledger.names import Names
from gateway.ledger.writer import Script, TrailWriter
from tests.running import Redis

NAMES = Names("a")
KEEP_MS = 86_400_000
ECHO = Script("""
local behind = append_first()
if behind then return behind end
redis.call('INCR', KEYS[3])
return {'done'}
""")


class Bench:
    """One writer, its journal and its connection, which can be made to lose answers."""

    def __init__(self, redis: Redis, folder: Path, name: str = "host-w") -> None:
        self.connection: Connection = connect(config.Redis(url=redis.url), None, read_seconds=None)
        self.alarms: list[str] = []
        self.lose = 0.0
        self.random = random.Random(7)
        journal = Journal(folder, name, Bounds(1 << 30, 600, 0))
        self.batch = Batch(
            self._exchange, 10.0, self.connection.reconnect, lambda *_: None, NAMES.probe, lambda: self.trail.journal.write()
        )
        self.trail = TrailWriter(NAMES, name, journal, self.batch, time.monotonic, self.alarms.append, self._opening)

    def _opening(self, why: str) -> Record:
        return Record(stage="open", at="2030-01-31T12:30:00.000Z", account="a", why=why)

    async def _exchange(self, commands: Sequence[Any]) -> list[Any]:
        if self.random.random() < self.lose / 2:
            raise ConnectionError
        answers = await self.connection.exchange(commands)
        if self.random.random() < self.lose / 2:
            await self.connection.reconnect()
            raise ConnectionError
        return answers

    def record(self, stage: str = "beat", **more: Any) -> Record:
        return Record(stage=stage, at="2030-01-31T12:30:00.000Z", account="a", **more)  # type: ignore[arg-type]

    async def settled(self) -> None:
        async with asyncio.timeout(30):
            while True:
                self.lose = 0.0
                if self.batch.down:
                    await asyncio.sleep(0.05)
                    continue
                with suppress(LedgerDown):
                    await self.trail.catch_up()
                    await self.batch.drain()
                    if not self.trail.waiting:
                        return

    async def aclose(self, *, sealed: bool = False) -> None:
        await self.batch.aclose()
        await self.trail.journal.aclose(sealed=sealed)
        await self.connection.aclose()


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(work())  # type: ignore[arg-type]


def stream(redis: Redis) -> list[bytes]:
    with redis.client() as client:
        return [fields[b"r"] for _, fields in client.xrange(NAMES.audit)]


def assert_whole(records: list[bytes], *, first: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Assert that each writer's records are there once, without gaps, each naming the one before; return them by writer."""
    by_writer: dict[str, list[bytes]] = {}
    for record in records:
        by_writer.setdefault(json.loads(record)["writer"], []).append(record)
    told = {}
    for writer, own in by_writer.items():
        rows = [json.loads(record) for record in own]
        assert [row["seq"] for row in rows] == list(range(rows[0]["seq"], rows[0]["seq"] + len(rows)))
        assert rows[0]["seq"] in (0, first)
        assert [row["prev"] for row in rows[1:]] == [chained(record).hex() for record in own[:-1]]
        told[writer] = rows
    return told


def test_answers_that_are_lost_cost_no_record_and_double_none(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records and scripts together, with every third exchange broken before or after it was carried out."""
    monkeypatch.setattr(batches, "_PAUSE_FIRST_SECONDS", 0.001)
    monkeypatch.setattr(batches, "_PAUSE_MAX_SECONDS", 0.01)

    async def work() -> None:
        bench = Bench(redis, tmp_path)
        bench.lose = 0.3
        done = 0

        async def one(number: int) -> None:
            nonlocal done
            if number % 3:
                bench.trail.send(bench.record(why=str(number)))
                return
            try:
                assert await bench.trail.run(ECHO, bench.record(why=str(number)), ["gw:{a}:count"], []) == [b"done"]
                done += 1
            except LedgerDown:
                pass

        for burst in range(60):
            await asyncio.gather(*(one(burst * 10 + number) for number in range(10)))
            await asyncio.sleep(0.02)
        await bench.settled()

        (rows,) = assert_whole(stream(redis)).values()
        assert Counter(row["why"] for row in rows) == Counter(map(str, range(600)))
        with redis.client() as client:
            assert int(client.get("gw:{a}:count")) >= done > 20
        assert "trail.forked" not in bench.alarms
        await bench.aclose()

    run(work)


def test_a_redis_that_lost_its_tail_gets_it_again(redis: Redis, tmp_path: Path) -> None:
    """As after a failover or a cut file: the next record says what is missing, and the journal has it."""

    async def work() -> None:
        bench = Bench(redis, tmp_path)
        for number in range(20):
            bench.trail.send(bench.record(why=str(number)))
        await bench.batch.drain()
        before = stream(redis)
        with redis.client() as client:
            ids = [identity for identity, _ in client.xrange(NAMES.audit)]
            client.xdel(NAMES.audit, *ids[12:])
            client.hset(NAMES.tips, "host-w", f"11 {chained(before[11]).hex()}")

        assert await bench.trail.run(ECHO, bench.record(why="20"), ["gw:{a}:count"], []) == [b"done"]

        (rows,) = assert_whole(stream(redis)).values()
        assert [row["why"] for row in rows] == list(map(str, range(21)))
        assert bench.alarms == ["trail.redis_lost_records"]
        await bench.aclose()

    run(work)


@pytest.mark.parametrize("sealed", [-1, 12, 19])
def test_an_emptied_redis_gets_what_is_not_sealed(redis: Redis, tmp_path: Path, sealed: int) -> None:
    """FLUSHALL: noticed without a new record too; sealed records are not sent again as far as whole segments go."""

    async def work() -> None:
        bench = Bench(redis, tmp_path)
        for number in range(20):
            bench.trail.send(bench.record(why=str(number)))
        await bench.batch.drain()
        bench.trail.sealed = sealed
        with redis.client() as client:
            client.flushall()

        bench.trail.lost(-1)
        await bench.trail.catch_up()
        bench.trail.send(bench.record(why="20"))
        await bench.settled()

        (rows,) = assert_whole(stream(redis), first=sealed + 1).values()
        assert [row["why"] for row in rows] == list(map(str, range(sealed + 1, 21)))
        await bench.aclose()

    run(work)


def test_forgotten_scripts_change_nothing(redis: Redis, tmp_path: Path) -> None:
    """SCRIPT FLUSH again and again, amid records and scripts."""

    async def work() -> None:
        bench = Bench(redis, tmp_path)
        with redis.client() as client:
            for burst in range(20):
                client.script_flush()
                answers = [bench.trail.run(ECHO, bench.record(why="run"), ["gw:{a}:count"], []) for _ in range(5)]
                for number in range(5):
                    bench.trail.send(bench.record(why=str(burst * 5 + number)))
                assert await asyncio.gather(*answers) == [[b"done"]] * 5
        await bench.settled()

        (rows,) = assert_whole(stream(redis)).values()
        assert Counter(row["why"] for row in rows) == Counter(["run"] * 100 + [str(number) for number in range(100)])
        with redis.client() as client:
            assert int(client.get("gw:{a}:count")) == 100
        assert bench.alarms == []
        await bench.aclose()

    run(work)


@pytest.mark.parametrize("by_script", [False, True])
def test_two_writers_of_one_name_lose_nothing(redis: Redis, tmp_path: Path, by_script: bool) -> None:
    """A machine that was copied while it ran: whoever comes second goes on under another name, and it is told."""

    async def work() -> None:
        one, two = Bench(redis, tmp_path / "1"), Bench(redis, tmp_path / "2")
        for bench, name in ((one, "one"), (two, "two"), (one, "one"), (two, "two")):
            for number in range(3):
                bench.trail.send(bench.record(why=f"{name} {number}"))
            await bench.settled()
            if by_script:
                record = bench.record(why=name)
                assert await bench.trail.run(ECHO, record, ["gw:{a}:count"], []) == [b"done"]
                assert record.writer == bench.trail.name

        told = assert_whole(stream(redis))
        assert one.trail.name == "host-w"
        assert two.trail.name != "host-w"
        assert told[two.trail.name][0]["stage"] == "open"
        why = Counter(row["why"] for rows in told.values() for row in rows if row["stage"] == "beat")
        assert why == Counter(
            {f"{name} {number}": 2 for name in ("one", "two") for number in range(3)}
            | ({"one": 2, "two": 2} if by_script else {})
        )
        assert (one.alarms, two.alarms) == ([], ["trail.forked"])
        await one.aclose()
        await two.aclose()

    run(work)


def dead_journal(folder: Path, records: Sequence[dict[str, Any]]) -> list[bytes]:
    """Leave a journal as a killed writer does, and return its lines."""
    from gateway.ledger.chain import Chain

    chain = Chain("host-dead")
    lines = [chain.link(Record(at="2030-01-31T12:30:00.000Z", account="a", **more)).record for more in records]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "host-dead.000000000000.jsonl").write_bytes(b"".join(line + b"\n" for line in lines) + b'{"stage":"inte')
    return lines


CALLS: list[dict[str, Any]] = [
    {"stage": "open"},
    {"stage": "intent", "request_id": "r1"},
    {"stage": "intent", "request_id": "r2"},
    {"stage": "outcome", "request_id": "r1", "intent": "host-dead-1"},
]


@pytest.mark.parametrize("had", [0, 2, 4, 6])
def test_a_dead_writer_is_carried_on_once(redis: Redis, tmp_path: Path, had: int) -> None:
    """Redis had nothing, half, all, or more than the disk: every record is there once, what was open is closed."""

    async def work() -> None:
        lines = dead_journal(tmp_path / "j", CALLS)
        bench = Bench(redis, tmp_path / "own")
        with redis.client() as client:
            beyond = []
            for number in range(4, had):
                before = lines[-1] if not beyond else beyond[-1]
                beyond.append(json.dumps({"stage": "intent", "writer": "host-dead", "seq": number, "prev": chained(before).hex(),
                                          "at": "2030-01-31T12:30:00.000Z", "account": "a"}).encode())  # fmt: skip
                client.hset(NAMES.open, f"host-dead-{number}", "1 k.1")
            for line in [*lines, *beyond][:had]:
                client.xadd(NAMES.audit, {"r": line})
            if had:
                client.hset(NAMES.tips, "host-dead", f"{had - 1} {chained([*lines, *beyond][had - 1]).hex()}")
        heir = Heir(NAMES, tmp_path / "j", bench.batch, time.time, bench.alarms.append, KEEP_MS)

        await heir.look()
        await heir.look()

        (rows,) = assert_whole(stream(redis)).values()
        closed = [row for row in rows if row["stage"] == "abort"]
        assert [row["intent"] for row in closed] == ["host-dead-2", *(f"host-dead-{number}" for number in range(4, had))]
        assert all((row["problem"], row["result"]) == ("unknown_outcome", "unknown") for row in closed)
        assert (rows[-1]["stage"], rows[-1]["why"]) == ("close", "recovered")
        assert len(rows) == max(4, had) + len(closed) + 1
        with redis.client() as client:
            assert client.hlen(NAMES.open) == 0
            # An emptied Redis gets it again, by another heir too; when it is sealed, the files go.
            client.flushall()
            heir.close()
            other = Heir(NAMES, tmp_path / "j", bench.batch, time.time, bench.alarms.append, KEEP_MS)
            await other.look()
            again = [json.loads(record) for record in stream(redis)]
            # What the disk never took, only Redis had.
            assert again == [row for row in rows if not 4 <= row["seq"] < had]
            client.hset(NAMES.sealed, "host-dead", rows[-1]["seq"])
            # It was closed, and Redis lost only that.
            client.hset(NAMES.open, mapping={"host-dead-0": "1 k.1", "host-living-0": "1 k.1"})
            await other.look()
            other.close()
            assert client.hkeys(NAMES.open) == [b"host-living-0"]
        assert list((tmp_path / "j").iterdir()) == []
        assert bench.alarms == []
        await bench.aclose()

    run(work)


def test_an_heir_that_is_killed_has_an_heir(redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it had added to the journal is not added again."""

    async def work() -> None:
        dead_journal(tmp_path / "j", CALLS)
        bench = Bench(redis, tmp_path / "own")
        first = Heir(NAMES, tmp_path / "j", bench.batch, time.time, bench.alarms.append, KEEP_MS)

        async def killed(*_: object) -> bool:
            raise LedgerDown("killed")

        monkeypatch.setattr(first, "_ship", killed)
        with pytest.raises(LedgerDown):
            await first.look()
        first.close()
        assert stream(redis) == []

        second = Heir(NAMES, tmp_path / "j", bench.batch, time.time, bench.alarms.append, KEEP_MS)
        await second.look()

        (rows,) = assert_whole(stream(redis)).values()
        assert [row["stage"] for row in rows] == ["open", "intent", "intent", "outcome", "abort", "close"]
        second.close()
        await bench.aclose()

    run(work)


def test_a_living_writer_has_no_heir(redis: Redis, tmp_path: Path) -> None:
    """Its lock is its own, also within one process."""

    async def work() -> None:
        bench = Bench(redis, tmp_path)
        bench.trail.send(bench.record())
        await bench.settled()
        heir = Heir(NAMES, tmp_path, bench.batch, time.time, bench.alarms.append, KEEP_MS)

        await heir.look()

        assert len(stream(redis)) == 1
        heir.close()
        await bench.aclose()

    run(work)


def test_a_damaged_journal_is_shipped_with_its_gap(redis: Redis, tmp_path: Path) -> None:
    """What can be read is sent, what cannot be is set aside, and it is told."""

    async def work() -> None:
        lines = dead_journal(tmp_path / "j", [*CALLS, {"stage": "beat"}])
        path = tmp_path / "j" / "host-dead.000000000000.jsonl"
        path.write_bytes(path.read_bytes().replace(lines[3], b"\x00" * 40))
        bench = Bench(redis, tmp_path / "own")
        heir = Heir(NAMES, tmp_path / "j", bench.batch, time.time, bench.alarms.append, KEEP_MS)

        await heir.look()

        rows = [json.loads(record) for record in stream(redis)]
        assert [(row["seq"], row["stage"]) for row in rows] == [
            (0, "open"), (1, "intent"), (2, "intent"), (4, "beat"), (5, "abort"), (6, "abort"), (7, "close"),
        ]  # fmt: skip
        assert bench.alarms == ["journal.damaged"]
        assert (tmp_path / "j" / "damaged").read_bytes() == b"\x00" * 40 + b"\n"
        heir.close()
        await bench.aclose()

    run(work)
