"""The sealer before a real Redis: everything once, signed, trimmed only behind the seal; one sealer and one archive for all."""

from __future__ import annotations

import asyncio
import json
import time
from argparse import Namespace
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis as Client

from gateway.audit import Record, rfc3339
from gateway.cli import seal as commands
from gateway.errors import Problem, Refusal
from gateway.ledger.chain import Chain, Link
from gateway.ledger.names import KEYS_TAG, Names
from gateway.telemetry import make_logger
from gateway.trail import archive as archives
from gateway.trail.archive import Archive, ArchiveError, lines, segments
from gateway.trail.note import Checkpoint, Signer, verified
from gateway.trail.seal import Sealer
from gateway.trail.verify import verify
from tests.running import Redis

SIGNER = Signer.generate("tests")
STREAM = Names("a").audit


class Stage:
    """A sealer, an archive, and writers that put records into streams as a ledger does."""

    def __init__(self, redis: Redis, archive: Archive, *, keep: float = 0.0, hours: float = 24.0) -> None:
        self.client = Client.from_url(redis.url)
        self.now = time.time()
        self.archive = archive
        self.own = Chain("host-sealer")
        self.sealer = Sealer(
            self.client, ("a", "b", KEYS_TAG), archive, SIGNER, hours * 3600, lambda: self.now, self.record, keep
        )
        self.chains: dict[str, Chain] = {}

    async def record(self, record: Record) -> None:
        self.own.link(record)
        await self.put(msgspec.json.encode(record), KEYS_TAG)

    async def put(self, record: bytes, account: str = "a") -> None:
        await self.client.xadd(Names(account).audit, {"r": record})

    async def write(self, count: int, writer: str = "host-1", account: str = "a", stage: str = "beat") -> list[bytes]:
        chain = self.chains.setdefault(writer, Chain(writer))
        made = []
        for _ in range(count):
            first = "open" if chain.seq == 0 else stage
            made.append(chain.link(Record(stage=first, at=rfc3339(self.now), account=account)).record)  # type: ignore[arg-type]
            await self.put(made[-1], account)
        return made

    async def live(self, days: int) -> None:
        """Let a writer write some days, each sealed by itself, and close."""
        for _ in range(days):
            await self.write(20)
            await self.sealer.seal()
            self.now += 86_400
        await self.write(1, stage="close")

    def sealed_lines(self) -> list[bytes]:
        return [line for _, path in segments(self.archive.folder) for line in lines(path)]

    def status(self) -> int:
        return verify(self.archive.folder, SIGNER.public).status


def staged(redis: Redis, folder: Path, work: Callable[[Stage], Awaitable[None]], **more: Any) -> None:
    async def run() -> None:
        with Archive(folder) as archive:
            stage = Stage(redis, archive, **more)
            await work(stage)
            await stage.client.aclose()

    asyncio.run(run())


def test_everything_is_sealed_once_and_signed(redis: Redis, tmp_path: Path) -> None:
    """Streams of several accounts, records that stand twice, thousands at a time; also when nothing came."""

    async def work(stage: Stage) -> None:
        made = await stage.write(2500) + await stage.write(3, "host-2", "b")
        for record in made[100:110]:
            await stage.put(record)
        rounds = [await stage.sealer.seal() for _ in range(4)]

        assert [one.more for one in rounds if one] == [True, True, False, False]
        assert all(one is not None and one.alarms == () for one in rounds)
        assert sorted(stage.sealed_lines()) == sorted(made)
        checkpoint = Checkpoint.parse(verified((tmp_path / "x" / "checkpoint").read_text(), SIGNER.public))
        assert checkpoint.tips == {"host-1": 2499, "host-2": 2}
        assert stage.status() == 0
        assert await stage.client.hgetall(Names("a").sealed) == {b"host-1": b"2499"}

        stage.now += 60
        idle = await stage.sealer.seal()
        assert idle is not None
        assert (idle.added, idle.size) == (0, 2503)
        assert rfc3339(stage.now) in idle.note

    staged(redis, tmp_path / "x", work)


def test_what_is_wrong_is_told_and_sealed_all_the_same(redis: Redis, tmp_path: Path) -> None:
    """Another record under a known name, a gap, a wrong predecessor, an entry that is no record: evidence, not an end."""

    async def work(stage: Stage) -> None:
        made = await stage.write(3)
        await stage.put(made[1].replace(b"beat", b"open"))
        await stage.put(b"{")
        await stage.write(1, "host-2")
        gone = stage.chains["host-2"]
        gone.link(Record(stage="beat", at=rfc3339(stage.now), account="a"))
        await stage.write(1, "host-2")
        await stage.write(1, "host-3")
        stage.chains["host-3"] = Chain("host-3", 1, "ab" * 32)
        await stage.write(1, "host-3")

        sealed = await stage.sealer.seal()

        assert sealed is not None
        told = " | ".join(sealed.alarms)
        for words in (
            "host-1-1 was written twice",
            "is no record",
            "host-2-2 does not follow on host-2-0",
            "host-3-1 does not name",
        ):
            assert words in told
        assert len(sealed.alarms) == 4
        assert sealed.size == 7
        assert stage.status() == 1

    staged(redis, tmp_path / "x", work)


def test_what_cannot_stand_in_an_archive_is_told_and_passed_over(redis: Redis, tmp_path: Path) -> None:
    """Whoever could write to the stream once must not stop the sealer, nor spoil its checkpoints: its own records are sealed."""
    common = b'"stage":"open","at":"2030-01-31T12:00:00.000Z","account":"a"'
    odd = [
        b'{%s,"writer":"w","seq":0,"why":%s}' % (common, b"[" * 1000 + b"]" * 1000),
        b'{%s,"writer":"w","seq":0,"prev":5}' % common,
        b'{%s,"writer":"w","seq":0,"key_id":7}' % common,
        b'{%s,"writer":"a b","seq":0}' % common,
        b'{%s,"writer":"","seq":0}' % common,
        b'{%s,"writer":"w","seq":-1}' % common,
        b'{%s,"writer":"w","seq":%d}' % (common, 2**63),
        b'{%s,"writer":"w",\n"seq":0}' % common,
    ]

    async def work(stage: Stage) -> None:
        await stage.write(2)
        for record in odd:
            await stage.put(record)
        await stage.write(2)

        sealed = await stage.sealer.seal()

        assert sealed is not None
        assert [alarm.partition(" is ")[2] for alarm in sealed.alarms] == ["no record"] * len(odd)
        assert (sealed.size, stage.status()) == (4, 0)
        assert Checkpoint.parse(verified(sealed.note, SIGNER.public)).tips == {"host-1": 3}

    staged(redis, tmp_path / "x", work)


def test_the_stream_is_trimmed_only_behind_the_seal(redis: Redis, tmp_path: Path) -> None:
    """Old and sealed: gone from Redis. Old and not sealed: it stays."""

    async def work(stage: Stage) -> None:
        made = await stage.write(5)
        await stage.sealer.seal()
        assert await stage.client.xlen(STREAM) == 5
        stage.now += 3600
        late = await stage.write(5)
        sealer = stage.sealer
        sealer._trimmed_at = 0.0
        await sealer._trim(stage.now + 7200)
        assert await stage.client.xlen(STREAM) == 6  # The last sealed one is the bound, and stays.

        assert (await sealer.seal()) is not None
        assert stage.sealed_lines() == made + late
        assert stage.status() == 0

    staged(redis, tmp_path / "x", work, hours=1.0)


def test_one_sealer_and_one_archive_for_all(redis: Redis, tmp_path: Path) -> None:
    """A second one waits for the lease; another archive than the one in use is refused, and so is a second hand on one."""

    async def work(stage: Stage) -> None:
        await stage.write(3)
        assert await stage.sealer.seal() is not None
        second = Stage(redis, stage.archive)
        assert await second.sealer.seal() is None
        await stage.sealer.aclose()
        assert await second.sealer.seal() is not None
        with pytest.raises(ArchiveError, match="being added to by another process"):
            Archive(tmp_path / "x")
        with Archive(tmp_path / "y") as other:
            third = Stage(redis, other)
            with pytest.raises(ArchiveError, match="another archive than the one in use"):
                await third.sealer.seal()
            await third.client.aclose()
        await second.client.aclose()

    staged(redis, tmp_path / "x", work)


def test_an_emptied_redis_and_a_clock_set_back_lose_nothing(redis: Redis, tmp_path: Path) -> None:
    """Ids of the stream begin anew below those that were sealed: what comes is sealed, what came again is not sealed twice."""

    async def work(stage: Stage) -> None:
        made = await stage.write(3)
        await stage.sealer.seal()
        await stage.client.flushall()
        for number, record in enumerate(made[1:]):
            await stage.client.xadd(STREAM, {"r": record}, id=f"{number + 1}-0")
        fresh = stage.chains["host-1"].link(Record(stage="beat", at=rfc3339(stage.now), account="a")).record
        await stage.client.xadd(STREAM, {"r": fresh}, id="9-0")

        sealed = await stage.sealer.seal()

        assert sealed is not None
        assert (sealed.added, sealed.alarms) == (1, ())
        assert stage.status() == 0

    staged(redis, tmp_path / "x", work)


def test_a_new_master_whose_clock_is_behind_is_read_whole(redis: Redis, tmp_path: Path) -> None:
    """What it takes has ids below those that are sealed, and is sealed all the same; no checkpoint is older than the last."""

    async def work(stage: Stage) -> None:
        async def put(record: bytes, identity: str) -> None:
            await stage.client.xadd(STREAM, {"r": record}, id=identity)
            link, _ = Link.read(record)
            await stage.client.hset(Names("a").tips, "host-1", f"{link.seq} {link.hash}")

        chain = Chain("host-1")
        made = [chain.link(Record(stage="beat", at=rfc3339(stage.now), account="a")).record for _ in range(2500)]
        for number, record in enumerate(made[:2000], 1):
            await put(record, f"{number}-0")
        while (sealed := await stage.sealer.seal()) is not None and sealed.more:
            pass
        before = Checkpoint.parse(verified((tmp_path / "x" / "checkpoint").read_text(), SIGNER.public))
        # The replica had not got the last 500; they are sent again, and 501 more.
        await stage.client.delete(STREAM)
        for number, record in enumerate(made[:1500], 1):
            await put(record, f"{number}-0")
        for number, record in enumerate(made[1500:], 1):
            await put(record, f"1500-{number}")
        await put(chain.link(Record(stage="beat", at=rfc3339(stage.now), account="a")).record, "2000-1")

        rounds = []
        while not rounds or rounds[-1].more:
            found = await stage.sealer.seal()
            assert found is not None
            rounds.append(found)
            assert len(rounds) < 10
            after = Checkpoint.parse(verified((tmp_path / "x" / "checkpoint").read_text(), SIGNER.public))
            assert after.at >= before.at
        assert sum(one.added for one in rounds) == 501
        assert all(one.alarms == () for one in rounds)
        assert stage.sealed_lines()[:2500] == made
        assert stage.status() == 0

        # What Redis says to have, and has not, is looked for once.
        await stage.client.hset(Names("a").tips, "host-2", f"7 {'ab' * 32}")
        again = [await stage.sealer.seal() for _ in range(6)]
        assert [one.more for one in again if one] == [True, True, True, False, False, False]

    staged(redis, tmp_path / "x", work)


def test_a_sealer_that_died_anywhere_goes_on(redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between any two of its writes: what it had written behind the last valid state is written again, the same."""
    real = archives.write_whole

    for step in ("state.json", "checkpoint", "before rows"):
        folder = tmp_path / step.replace(" ", "-")

        async def work(stage: Stage, step: str = step) -> None:
            await stage.client.flushall()
            made = await stage.write(4)
            await stage.sealer.seal()
            made += await stage.write(4)

            def dying(path: Path, data: bytes) -> None:
                if path.name == step:
                    raise KeyboardInterrupt
                real(path, data)

            monkeypatch.setattr(archives, "write_whole", dying)
            if step == "before rows":
                monkeypatch.setattr(archives.os, "fdatasync", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                await stage.sealer.seal()
            monkeypatch.undo()
            stage.archive.__exit__(None, None, None)
            with Archive(stage.archive.folder) as again:
                await stage.sealer.aclose()
                successor = Stage(redis, again)
                sealed = await successor.sealer.seal()
                assert sealed is not None
                assert sealed.alarms == ()
                assert successor.sealed_lines() == made
                assert successor.status() == 0
                await successor.client.aclose()

        async def run(folder: Path = folder, work: Callable[[Stage], Awaitable[None]] = work) -> None:
            stage = Stage(redis, Archive(folder))
            await work(stage)
            await stage.client.aclose()

        asyncio.run(run())


def _interrupt(_: int) -> None:
    raise KeyboardInterrupt


def test_retention_removes_whole_segments_and_says_so(redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before its own record is sealed; the rest verifies, and without that record it would not."""
    monkeypatch.setattr(archives, "SEGMENT_BYTES", 2000)

    async def work(stage: Stage) -> None:
        await stage.live(6)
        await stage.sealer.seal()
        assert len(segments(tmp_path / "x")) == 7
        before = stage.sealed_lines()

        stage.sealer.keep_seconds = 2.5 * 86_400
        stage.sealer._looked_at = 0.0
        await stage.sealer.seal()
        assert stage.sealed_lines() == before
        await stage.sealer.seal()
        await stage.sealer.seal()

        left = stage.sealed_lines()
        assert len(before) > len(left) > 40
        removed = [json.loads(line) for line in left if b"trail.removed" in line]
        assert [int(record["after"]) for record in removed] == [segments(tmp_path / "x")[0][0]]
        assert stage.status() == 0
        # Nobody else may remove any.
        segments(tmp_path / "x")[0][1].unlink()
        assert stage.status() == 2

    staged(redis, tmp_path / "x", work)


def test_a_removal_that_cannot_be_recorded_is_put_off(redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis was away for that moment: nothing is removed, the sealer goes on, and removes when it can say so."""
    monkeypatch.setattr(archives, "SEGMENT_BYTES", 2000)
    monkeypatch.setattr(commands, "_EVERY_SECONDS", 0.0)

    async def work(stage: Stage) -> None:
        await stage.live(2)
        stopping, refused, record = asyncio.Event(), [], stage.sealer.record

        async def away(_: Record) -> None:
            refused.append(segments(tmp_path / "x")[0][0])
            stage.sealer.record, stage.sealer._looked_at = record, 0.0
            raise Refusal(Problem.ledger_unavailable)

        def paused() -> float:
            if segments(tmp_path / "x")[0][0] > 0:
                stopping.set()
            return stage.now

        stage.sealer.keep_seconds, stage.sealer._looked_at, stage.sealer.record = 1.5 * 86_400, 0.0, away
        stage.sealer.clock = lambda: paused() if refused else stage.now
        async with asyncio.timeout(30):
            await commands._seal_for_ever(stage.sealer, make_logger("silent"), stopping, Namespace(once=False, beside=None))

        assert refused == [0]
        assert stage.status() == 0

    staged(redis, tmp_path / "x", work)


def test_writers_that_are_over_are_forgotten_in_time(redis: Redis, tmp_path: Path) -> None:
    """A command an hour after its record, a gateway a month after it closed; one that did not close never is."""

    async def work(stage: Stage) -> None:
        await stage.write(2, "host-open")
        await stage.write(2, "host-closed", stage="close")
        command = Chain("host-command")
        change = command.link(Record(stage="change", at=rfc3339(stage.now), account="a", change="limit.set")).record
        await stage.put(change)
        for writer in ("host-open", "host-closed", "host-command"):
            await stage.client.hset(Names("a").tips, writer, "1 ab")
        await stage.sealer.seal()
        assert stage.archive.state.tips.keys() == {"host-open", "host-closed", "host-command"}

        stage.now += 7200
        await stage.sealer.seal()
        assert stage.archive.state.tips.keys() == {"host-open", "host-closed"}
        stage.now += 31 * 86_400
        await stage.sealer.seal()
        assert stage.archive.state.tips.keys() == {"host-open"}
        assert await stage.client.hkeys(Names("a").tips) == [b"host-open"]
        assert await stage.client.hkeys(Names("a").sealed) == [b"host-open"]
        # It fell silent, and that is told.
        assert stage.status() == 2

    staged(redis, tmp_path / "x", work)


def test_a_copy_is_not_added_to(tmp_path: Path) -> None:
    """What has records and does not say how far they are valid is evidence: nothing of it is cut off."""
    (tmp_path / "00000000000000000000.jsonl").write_bytes(b"{}\n")
    (tmp_path / "hashes").write_bytes(b"x" * 32)

    with pytest.raises(ArchiveError, match="it is a copy"):
        Archive(tmp_path)

    assert (tmp_path / "hashes").read_bytes() == b"x" * 32
    assert (tmp_path / "00000000000000000000.jsonl").read_bytes() == b"{}\n"


def test_an_archive_has_its_name_before_it_is_used(tmp_path: Path) -> None:
    """A sealer that dies at once leaves one that its successor goes on with."""
    with Archive(tmp_path) as first:
        name = first.state.id
    with Archive(tmp_path) as second:
        assert second.state.id == name
