"""What became of calls is counted in Redis by all processes together, each request once, through outages and deaths."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from redis.asyncio import Redis as Client

from gateway.audit import Record
from gateway.ledger.buckets import Buckets
from gateway.ledger.ends import TRIED_MAX, Ended, Ends, Event, Outage, Span, Tried, read_ends
from gateway.ledger.health import account_health
from gateway.ledger.names import Names
from tests.running import Redis, Stack, until


def counted(stack: Stack, span: Span = "hour") -> Counter[Event]:
    """Return what was counted lately."""

    async def read() -> Counter[Event]:
        async with Client.from_url(stack.redis.url) as client:
            return sum((await read_ends(client, "test", span, time.time())).values(), Counter[Event]())

    return asyncio.run(read())


def ended(stack: Stack) -> Counter[tuple[str, str | None]]:
    """Return how many requests had which result and problem."""
    found = Counter[tuple[str, str | None]]()
    for event, count in counted(stack).items():
        if isinstance(event, Ended):
            found[event.result, event.problem] += count
    return found


def test_each_request_is_counted_once(start: Callable[..., Stack]) -> None:
    """By all workers, whatever became of it, in both spans; one that was tried twice has two tries and one end."""
    stack = start(workers=2, quotas='[policies.caller]\nrate = "1/d"\nburst = 20')
    m1, m2 = stack.masked()
    assert stack.unset(m1=m1, m2=m2, expiry_duration=-1).status_code == 200
    for _ in range(5):
        assert stack.unset(m1=stack.fresh_numbers()[0]).status_code == 404
    assert stack.unset(b"{").status_code == 400
    assert stack.unset(m1=m1, key="gk_live_aaaaaaaaaa_" + "b" * 40).status_code == 401
    stack.fault(answer="stalled")
    assert stack.unset(m1=m1, m2=m2, expiry_duration=-1).status_code == 504
    tries = len(stack.vendor_calls())
    stack.no_faults()

    expected = {
        ("answered", None): 1,
        ("failed", "masking_not_found"): 5,
        ("refused", "body_malformed"): 1,
        ("refused", "credential_malformed"): 1,
        ("unknown", "upstream_timeout"): 1,
    }
    until(lambda: sum(ended(stack).values()) >= 9, what="all being counted")
    time.sleep(2.5)  # Nothing is counted again.
    assert ended(stack) == expected
    events = counted(stack)
    assert counted(stack, "day") == events
    assert tries > 7, "the one that timed out was tried again"
    assert events[Tried("primary", rejected=False)] == tries
    (good,) = (event for event in events if isinstance(event, Ended) and event.result == "answered")
    assert (good.service, good.denied, good.degraded) == ("crm", False, False)
    assert good.within_ms is not None
    refused = [event for event in events if isinstance(event, Ended) and event.result == "refused"]
    assert all(event.denied and event.within_ms is None for event in refused)


def test_a_rejected_credential_is_a_try_of_its_own(start: Callable[..., Stack], tmp_path: Path) -> None:
    """With when each was tried last, and which version."""
    wrong = tmp_path / "ssid"
    wrong.write_text("not-the-vendors")
    stack = start(credential=f'ssid = {{ file = "{wrong}" }}', secondary='ssid = { env = "VENDOR_SSID" }', rejections=1)
    m1, m2 = stack.masked()
    assert stack.unset(m1=m1, m2=m2, expiry_duration=-1).status_code == 200

    until(lambda: ended(stack) == {("answered", None): 1}, what="one end")
    events = counted(stack)
    assert (events[Tried("primary", rejected=True)], events[Tried("secondary", rejected=False)]) == (1, 1)

    async def used() -> Any:
        async with Client.from_url(stack.redis.url) as client:
            return (await account_health(client, "test")).tried

    found = asyncio.run(used())
    versions = {record["slot"]: record["credential"] for record in stack.stream() if record["stage"] == "outcome"}
    assert {slot: version for slot, (_, version) in found.items()} == versions
    assert all(time.time() - 60 < at <= time.time() for at, _ in found.values())


def test_an_outage_is_counted_when_it_is_over(start: Callable[..., Stack]) -> None:
    """Nothing is forgotten meanwhile: what went on without Redis says so, and the outage is one."""
    stack = start()
    assert stack.unset(m1=stack.fresh_numbers()[0]).status_code == 404
    until(lambda: sum(ended(stack).values()) == 1, what="the first being counted")
    stack.redis.kill()
    for _ in range(6):
        assert stack.unset(m1=stack.fresh_numbers()[0]).status_code == 404
    stack.redis.start()

    until(lambda: sum(ended(stack).values()) == 7, seconds=30.0, what="all being counted")
    events = counted(stack)
    assert sum(count for event, count in events.items() if isinstance(event, Ended) and event.degraded) == 6
    assert events[Outage()] >= 1


def test_what_a_dead_process_left_open_is_unknown(start: Callable[..., Stack]) -> None:
    """Its heir counts it, once."""
    stack = start()
    stack.killed_amid_a_call()

    until(lambda: ended(stack) == {("unknown", "unknown_outcome"): 1}, seconds=30.0, what="the heir's count")
    time.sleep(2.5)  # The heir looks again meanwhile.
    assert ended(stack) == {("unknown", "unknown_outcome"): 1}


def test_commands_count_too(start: Callable[..., Stack]) -> None:
    """A credential that is proved was tried, and is nobody's call; what a person closes is unknown, once."""
    stack = start()
    assert stack.unset(m1=stack.fresh_numbers()[0]).status_code == 404
    until(lambda: sum(ended(stack).values()) == 1, what="the call being counted")
    stack.cli("upstream", "check")
    until(lambda: counted(stack)[Tried("primary", rejected=False)] == 2, what="the try being counted")
    assert sum(ended(stack).values()) == 1

    stack.gateway.stop()
    with stack.redis.client() as client:
        client.hset(Names("test").tips, "host-lost", "7 " + "a" * 64)
        client.hset(Names("test").open, "host-lost-7", "1 k.1")
    stack.cli("audit", "close", "host-lost", "--why", "its disk is gone")
    assert ended(stack)["unknown", "unknown_outcome"] == 1


def test_two_credentials_that_are_both_rejected(start: Callable[..., Stack], tmp_path: Path) -> None:
    """Each is told so, though the caller is told of both at once."""
    for name in ("first", "second"):
        (tmp_path / name).write_text(f"{name}-wrong-one")
    credential, secondary = (f'ssid = {{ file = "{tmp_path / name}" }}' for name in ("first", "second"))
    stack = start(credential=credential, secondary=secondary, rejections=1)
    m1, m2 = stack.masked()
    assert stack.unset(m1=m1, m2=m2, expiry_duration=-1).status_code == 503

    until(lambda: ended(stack), what="one end")
    assert ended(stack) == {("refused", "upstream_credentials_rejected"): 1}
    events = counted(stack)
    assert (events[Tried("primary", rejected=True)], events[Tried("secondary", rejected=True)]) == (1, 1)


def test_who_comes_late_takes_back_nothing(tmp_path: Path) -> None:
    """What was tried last is told, not what was written last."""

    async def run(redis: Redis) -> None:
        names, now = Names("x"), time.time()
        late, early = Ends(names), Ends(names)
        async with Client.from_url(redis.url) as client:
            for ends, at, version in ((early, now, "new"), (late, now - 600, "old"), (late, now - 900, "new")):
                ends.tried(Record(stage="outcome", at="", account="x", slot="primary", credential=version), at)
                await ends.write(client.execute_command)
            at, version = (await account_health(client, "x")).tried["primary"]
            assert (abs(at - now) < 0.01, version) == (True, "new")
            for number in range(50):
                late.tried(Record(stage="outcome", at="", account="x", slot="secondary", credential=f"v{number}"), now + number)
                await late.write(client.execute_command)
            assert await client.zcard(names.tried) == TRIED_MAX

    with Redis(tmp_path / "r") as redis:
        asyncio.run(run(redis))


def test_buckets_keep_what_redis_does_not_take(tmp_path: Path) -> None:
    """Much is written part by part, what fails again, what is old never; each hash goes by itself."""

    async def run(redis: Redis) -> None:
        async with Client.from_url(redis.url, max_connections=1000) as client:
            buckets, now = Buckets("gw:{x}:b:", 60, 3600), 1_900_000_000.0
            failing = True

            async def submit(*command: Any) -> Any:
                if failing:
                    raise ConnectionError
                return await client.execute_command(*command)

            buckets.add(now - 7200, "old")
            for number in range(700):
                buckets.add(now, f"n{number}")
            buckets.add(now, "n0")
            assert not await buckets.write(submit)
            assert not await client.keys()
            failing = False
            names = buckets.names(now, 0)
            sizes, more = [], []
            for _ in range(3):
                more.append(await buckets.write(submit))
                sizes.append(sum([await client.hlen(name) for name in names.values()]))
            assert (sizes, more) == ([500, 700, 700], [True, False, False])
            assert len(await client.keys()) == 1, "what was too old was dropped"
            (name,) = names.values()
            assert await client.hget(name, "n0") == b"2"
            assert 3600 < await client.ttl(name) <= 3720
            assert list(buckets.names(now, 3600)) == [now // 60 * 60 - 60 * back for back in range(60, -1, -1)]

    with Redis(tmp_path / "r") as redis:
        asyncio.run(run(redis))


def test_durations_are_told_by_bounds(tmp_path: Path) -> None:
    """Never as less than they were, a fifth more at most; beyond 100 s as 100 s. Other services are told together."""
    ends, kept = Ends(Names("x")), []

    async def submit(*command: Any) -> None:
        if command[0] == "HINCRBY" and ":hour:" in command[1]:
            kept.append(command)

    def count(took: float | None, **told: Any) -> Any:
        ends.ended(Record(stage="outcome", at="", account="x", duration_ms=took, **told), 60.0)
        kept.clear()
        asyncio.run(ends.write(submit))
        ((_, _, name, _),) = kept
        return name

    for took in (0.2, 1.0, 1.01, 39.9, 5000.0, 99_000.0):
        within = float(count(took, result="answered").rpartition(b",")[2].rstrip(b"]"))
        assert max(took, 1.0) <= within <= max(took, 1.0) * 1.22
    assert count(250_000.0, result="won").endswith(b'"unknown",null,null,false,false,100000.0]')
    assert count(None).endswith(b"null]")
    for number in range(100):
        count(1.0, service=f"s{number}")
    assert count(1.0, service="one more").startswith(b'["end","other"')
    assert count(1.0, service="s7").startswith(b'["end","s7"')
