"""The overview tells what the trail and Redis say, and how much of it was read."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any

import pytest

from gateway.audit import Record
from gateway.ledger.ends import Ends
from gateway.ledger.names import Names
from gateway.model import RESULTS
from tests.console.running import HOSTILE, Console


def counted(console: Console, since: float) -> dict[str, Any]:
    """Count the closing records since a moment, which nobody tried again, by another way than the page does."""
    found: dict[str, Any] = {"answered": 0, "refused": 0, "failed": 0, "degraded": 0, "took": []}
    with console.redis.client() as client:
        entries = [(int(entry.split(b"-")[0]) / 1000, fields[b"r"]) for entry, fields in client.xrange("gw:{main}:audit")]
    for at, record in entries:
        if at >= since and b'"stage":"intent"' not in record:
            times = 3 if b'"count":3' in record else 1
            for name in ("answered", "refused", "failed"):
                found[name] += times * (f'"result":"{name}"'.encode() in record)
            found["degraded"] += b'"degraded":true' in record
            if b'"stage":"outcome"' in record:
                found["took"].append(json.loads(record)["duration_ms"])
    return found


@pytest.mark.parametrize(("span", "count", "step"), [("hour", 60, 60), ("day", 48, 1800)])
def test_calls_are_counted(console: Console, span: str, count: int, step: int) -> None:
    """Each request once, a flood of refusals by its count, the bars as many as the sum; durations not less than they were."""
    visitor, now = console.browser("auditor"), time.time()
    data: dict[str, Any] = visitor.get("/overview.json", params={"span": span}).json()
    if now // step != time.time() // step:  # A bucket was begun meanwhile.
        now = time.time()
        data = visitor.get("/overview.json", params={"span": span}).json()
    expected = counted(console, data["since"])
    took = sorted(expected.pop("took"))

    assert data["since"] == (now // step - count + 1) * step
    assert [bucket["at"] - data["since"] for bucket in data["buckets"]] == list(range(0, count * step, step))
    assert {name: data["calls"][name] for name in expected} == expected
    assert expected["answered"] > 100 and expected["failed"] and expected["degraded"] and expected["refused"] > 3
    assert sum(bucket[kind] for bucket in data["buckets"] for kind in RESULTS) == data["calls"]["all"]
    assert {row["problem"]: row["count"] for row in data["problems"]}[HOSTILE] == 3
    assert sum(row["all"] for row in data["services"]) == data["calls"]["all"]
    for name, part in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        truly = took[math.ceil(part * len(took)) - 1]
        assert truly <= data["latency_ms"][name] < truly * 1.22
    assert data["outages"] == 1


def test_what_redis_knows_is_told(begin: Callable[..., Console]) -> None:
    """The active slot, what is open and not sealed, who writes, and whether Redis keeps what it acknowledged."""
    console = begin()
    console.fill()
    data = console.browser("auditor").get("/overview.json").json()
    main, other = data["accounts"]

    assert [(slot["slot"], slot["active"]) for slot in main["slots"]] == [("primary", False), ("secondary", True)]
    assert main["slots"][0]["used"] > 100 and main["slots"][1]["used"] == 0
    assert [slot["slot"] for slot in other["slots"]] == ["primary"]
    assert (main["open_intents"], main["unsealed"]) == (3, 4)
    assert 0 < time.time() - main["oldest_open_at"] < 300
    assert {writer["writer"]: writer["late"] for writer in main["writers"]}[HOSTILE]
    assert data["redis"]["durable"] is True
    assert data["archive"] is None


def test_a_redis_that_may_lose_records_is_told(begin: Callable[..., Console]) -> None:
    """Loudly, at the top of the page."""
    console = begin()
    with console.redis.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    visitor = console.browser("auditor")

    assert "Redis may lose records" in visitor.get("/overview").text
    assert visitor.get("/overview.json").json()["redis"]["durable"] is False


def test_the_sealed_trail_is_told(begin: Callable[..., Console]) -> None:
    """How much is sealed, since when, and how long the rest has waited."""
    console = begin()
    console.fill(calls=50)
    visitor = console.browser("auditor")
    console.cli("audit", "seal", "--once")
    data = visitor.get("/overview.json").json()

    assert data["archive"]["records"] > 50
    assert time.time() - data["archive"]["signed_at"] < 60
    assert data["accounts"][0]["seal_lag_seconds"] == 0


def test_however_many_calls_there_were(begin: Callable[..., Console]) -> None:
    """The page reads counts, so a busy day takes no longer than a quiet one, and is told whole."""
    console = begin()
    console.fill(calls=100)
    visitor = console.browser("auditor")
    ends = Ends(Names("other"))
    now = time.time()
    for number in range(200_000):
        made = Record(
            stage="outcome", at="", account="other", service=f"s{number % 150}", result="answered", duration_ms=20.0 + number % 70
        )
        ends.ended(made, now - number % 80_000)
    console.write_ends(ends)
    data = visitor.get("/overview.json", params={"span": "day"}).json()

    assert data["calls"]["all"] == 200_000 + 101 + 2
    assert sum(bucket["answered"] > 3000 for bucket in data["buckets"]) >= 43
    assert data["services"][0]["service"] == "other", "so many services are not told apart"
    assert visitor.get("/overview?span=day").elapsed.total_seconds() < 5


def test_what_else_stands_among_counts_is_passed_over(begin: Callable[..., Console]) -> None:
    """Whoever can write to Redis may have written it."""
    console = begin()
    name = f"gw:{{main}}:ends:hour:{int(time.time()) // 60}"
    odd: list[str | bytes] = [
        "",
        "{}",
        "[]",
        b"\xff",
        '["end"]',
        '["end",1,2,3,4,5,6,7]',
        '["end","crm","won",null,null,false,false,null]',
        '["other"]',
        '["end","crm","answered",null,null,false,false,1e308]',
        '["end","crm","answered",null,null,false,false,-5.0]',
    ]
    good = '["end","crm","answered",null,null,false,false,38.31]'
    with console.redis.client() as client:
        client.hset(name, mapping={**dict.fromkeys(odd, 7), good: 2})
        for service, count in (("a", "many"), ("b", "9" * 400), ("c", "-3"), ("d", "0")):
            client.hset(name, good.replace("crm", service), count)
        client.hset(name, '["outage"]', 0)
        client.zadd("gw:{main}:processes", {"late": float("inf"), b"\xff": time.time() * 1_000_000})
        client.hset("gw:{main}:open", "host-1", "9" * 40 + " crmkeyid00.1")
        client.zadd("gw:{main}:tried", {"primary v1": float("-inf"), b"secondary \xff": 1e30, "third v1": 1})
    visitor = console.browser("auditor")
    data = visitor.get("/overview.json").json()

    assert data["calls"]["all"] == data["calls"]["answered"] == 2
    assert data["outages"] == 0
    assert [slot["last_used_at"] for slot in data["accounts"][0]["slots"]] == [None, None]
    assert visitor.get("/overview").status_code == 200


def test_without_records_it_is_an_empty_page(begin: Callable[..., Console]) -> None:
    """A gateway that was never called has an overview too."""
    console = begin()
    page = console.browser("auditor").get("/overview")

    assert page.status_code == 200
    assert "Every call was." in page.text
