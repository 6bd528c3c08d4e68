"""A search over what is sealed and what is live tells each record once, whatever the sealer does meanwhile."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from gateway.audit import chained, rfc3339
from gateway.trail.archive import Archive, Reader
from gateway.trail.search import Query, Trail
from tests.running import Redis

START = 1_893_456_000.0
KEYS = ["gw:{main}:audit", "gw:{other}:audit"]


class World:
    """Two streams, who writes them, and who seals them."""

    def __init__(self, server: Redis, folder: Path) -> None:
        self.client = server.client()
        self.url = server.url
        self.archive = Archive(folder)
        self.folder = folder
        self.tips: dict[str, tuple[int, str]] = {}
        self.written: list[tuple[str, int]] = []

    def write(self, key: str, **fields: Any) -> tuple[str, int]:
        account = key[4:-7]
        writer = f"w-{account}"
        seq, prev = self.tips.get(writer, (-1, ""))
        at = rfc3339(START + len(self.written))
        row = {"stage": "beat", "writer": writer, "seq": seq + 1, "at": at, "account": account, **fields}
        line = json.dumps(row | ({"prev": prev} if prev else {})).encode()
        self.client.xadd(key, {"r": line}, id=f"{int((START + len(self.written)) * 1000)}-0")
        self.tips[writer] = (seq + 1, chained(line).hex())
        self.written.append((writer, seq + 1))
        return self.written[-1]

    def seal(self, count: int = 1000, trim: bool = True) -> None:
        for key in KEYS:
            position = self.archive.state.positions.get(key)
            page = self.client.xrange(key, f"({position}" if position else "-", "+", count=count)
            if page:
                last = page[-1][0].decode()
                assert not self.archive.add([fields[b"r"] for _, fields in page], {key: last}, key[4:-7])
                if trim:
                    self.client.xtrim(key, minid=f"{int(last.partition('-')[0]) + 1}-0")


@pytest.fixture
def world(redis: Redis, tmp_path: Path) -> Iterator[World]:
    made = World(redis, tmp_path / "archive")
    made.seal()
    made.archive.add([], {}, "main")
    with made.archive:
        yield made


def asked(world: World, ask: Any, keys: list[str] = KEYS) -> Any:
    async def work() -> Any:
        client = redis.asyncio.Redis.from_url(world.url)
        with Reader(world.folder) as reader:
            try:
                return await ask(Trail(client, keys, reader))
            finally:
                await client.aclose()

    return asyncio.run(work())


def ids(rows: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(row["writer"], row["seq"]) for row in rows]


async def everything(trail: Trail, query: Query = Query()) -> list[tuple[str, int]]:
    return ids([row async for row in trail.search(query)])


async def page_by_page(trail: Trail, count: int = 7, between: Any = None) -> list[tuple[str, int]]:
    page = await trail.page(Query(), count)
    found = ids(page.rows)
    while page.older:
        if between:
            await asyncio.to_thread(between)
        page = await trail.page(Query(), count, page.older)
        assert len(page.rows) <= count
        found = ids(page.rows) + found
    return found


@pytest.mark.parametrize("trim", [True, False])
def test_each_once(world: World, trim: bool) -> None:
    """Sealed, trimmed or live: oldest first, newest as a page, and page by page."""
    for number in range(60):
        world.write(KEYS[number % 2], service=f"s{number % 3}")
        if number in (20, 40):
            world.seal(trim=trim)

    assert asked(world, everything) == world.written
    assert asked(world, lambda trail: everything(trail, Query(service="s1"))) == world.written[1::3]
    assert asked(world, lambda trail: everything(trail, Query(service="s1", account="main"))) == [
        one for one in world.written[1::3] if one[0] == "w-main"
    ]
    assert ids(asked(world, lambda trail: trail.newest(Query(), 50))[0]) == world.written[-50:]
    assert asked(world, page_by_page) == world.written


def test_pages_while_sealing(world: World) -> None:
    """A page that follows one of live records goes on where it ended, though they are sealed now."""
    for number in range(60):
        world.write(KEYS[number % 2])
    for between in (lambda: world.seal(5), lambda: world.write(KEYS[0]), lambda: (world.seal(3), world.write(KEYS[1]))):
        before = list(world.written)
        found = asked(world, lambda trail: page_by_page(trail, 7, between))
        assert len(found) == len(set(found))
        assert set(before) <= set(found)


def test_written_twice(world: World) -> None:
    """Sent again after it was sealed, it is told once."""
    world.write(KEYS[0])
    line = world.client.xrange(KEYS[0])[0][1][b"r"]
    world.seal(trim=False)
    world.client.xadd(KEYS[0], {"r": line})
    world.client.xadd(KEYS[0], {"r": line})
    assert asked(world, everything) == world.written
    assert asked(world, page_by_page) == world.written


def test_ids_begin_anew(world: World) -> None:
    """A stream that was lost while Redis' clock was set back is told whole."""
    world.write(KEYS[0])
    world.seal()
    world.client.delete(KEYS[0])
    row = {"stage": "beat", "writer": "w-main", "seq": 1, "at": rfc3339(START), "account": "main"}
    world.client.xadd(KEYS[0], {"r": json.dumps(row)}, id="5-0")
    assert sorted(asked(world, everything)) == [*world.written, ("w-main", 1)]
    assert sorted(asked(world, page_by_page)) == [*world.written, ("w-main", 1)]


def test_the_sealer_died_before_its_state(world: World) -> None:
    """What is in the index but behind the state is told as live."""
    for number in range(10):
        world.write(KEYS[0])
    world.seal(5, trim=False)
    state = (world.folder / "state.json").read_bytes()
    world.seal(5, trim=False)
    (world.folder / "state.json").write_bytes(state)
    assert asked(world, everything) == world.written
    assert asked(world, page_by_page) == world.written


def test_raw_pages(world: World) -> None:
    for number in range(30):
        world.write(KEYS[0])
        if number == 20:
            world.seal()

    async def raw(trail: Trail) -> list[int]:
        return [json.loads(record)["seq"] async for page in trail.pages(KEYS[0], START + 5, START + 25) for record in page]

    assert asked(world, raw) == list(range(5, 26))


def test_a_mad_cursor(world: World) -> None:
    for text in ("x", "e30", "W10", "é", "eyJhIjoxfQ"):
        try:
            asked(world, lambda trail: trail.page(Query(), 3, text))
        except ValueError as error:
            assert "not what a page told" in str(error)


@pytest.mark.timeout(300)
def test_while_it_is_sealed_and_trimmed(world: World) -> None:
    """Nothing that was written before is missing, and nothing is told twice, though the sealer works all the time."""
    stop = threading.Event()
    chance = random.Random(3)
    world.client.connection_pool.max_connections = 10
    lock = threading.Lock()
    searches = 0

    def work() -> None:
        while not stop.is_set():
            with lock:
                # A quick machine must not write so much that every search after it takes longer.
                for _ in range(chance.randrange(40) if len(world.written) < 70 * (searches + 1) else 0):
                    world.write(KEYS[chance.randrange(2)])
            world.seal(chance.choice([10, 1000]))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        number = -1
        while (number := number + 1) < 150 or len(world.written) <= 10_000:
            with lock:
                before, searches = list(world.written), number
            found = (
                asked(world, everything)
                if number % 3 == 0
                else asked(world, lambda trail: page_by_page(trail, 500))
                if number % 3 == 1
                else ids(asked(world, lambda trail: trail.newest(Query(), 10**6))[0])
            )
            assert len(found) == len(set(found)), number
            assert set(before) <= set(found), (number, len(before))
    finally:
        stop.set()
        thread.join()
    assert len(world.written) > 10_000
