"""The overview tells what the trail and Redis say, and how much of it was read."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.console.running import HOSTILE, Console


def counted(console: Console, seconds: float) -> dict[str, int]:
    """Count the closing records of a span by another way than the page does."""
    since = time.time() - seconds
    found = {"answered": 0, "refused": 0, "failed": 0, "degraded": 0}
    with console.redis.client() as client:
        entries = [(int(entry.split(b"-")[0]) / 1000, fields[b"r"]) for entry, fields in client.xrange("gw:{main}:audit")]
    for at, record in entries:
        if at >= since and b'"stage":"intent"' not in record:
            times = 3 if b'"count":3' in record else 1
            for name in ("answered", "refused", "failed"):
                found[name] += times * (f'"result":"{name}"'.encode() in record)
            found["degraded"] += b'"degraded":true' in record
    return found


@pytest.mark.parametrize("span", ["hour", "day"])
def test_calls_are_counted(console: Console, span: str) -> None:
    """Each closing record once, a flood of refusals by its count, the bars as many as the sum."""
    data: dict[str, Any] = console.browser("auditor").get("/overview.json", params={"span": span}).json()
    expected = counted(console, 3600 if span == "hour" else 86_400)

    assert {name: data["calls"][name] for name in expected} == expected
    assert expected["answered"] > 100 and expected["failed"] and expected["degraded"] and expected["refused"] > 3
    bars = sum(bucket[kind] for bucket in data["buckets"] for kind in ("answered", "refused", "failed", "unknown"))
    assert data["calls"]["all"] - 3 <= bars <= data["calls"]["all"], "but for what falls into a bar that has begun before"
    assert {row["problem"]: row["count"] for row in data["problems"]}[HOSTILE] == 3
    assert sum(row["all"] for row in data["services"]) == data["calls"]["all"]
    assert data["latency_ms"]["p50"] < data["latency_ms"]["p95"] < data["latency_ms"]["p99"] <= 1020
    assert not data["capped"]


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


def test_the_sealed_trail_is_read_too(begin: Callable[..., Console]) -> None:
    """What Redis no longer has is told from what is sealed, and how long the rest has waited."""
    console = begin()
    console.fill(calls=50)
    visitor = console.browser("auditor")
    before = visitor.get("/overview.json", params={"span": "day"}).json()["calls"]
    console.cli("audit", "seal", "--once")
    with console.redis.client() as client:
        client.xtrim("gw:{main}:audit", maxlen=0)
    data = visitor.get("/overview.json", params={"span": "day"}).json()

    assert data["calls"]["all"] >= 50
    assert data["calls"] == before
    assert data["archive"]["records"] > 50
    assert time.time() - data["archive"]["signed_at"] < 60
    assert data["accounts"][0]["seal_lag_seconds"] == 0


def test_much_is_read_in_part_and_said_so(begin: Callable[..., Console]) -> None:
    """A page reads so many records and no more, and tells since when it knows."""
    console = begin()
    console.fill(calls=11_000)
    visitor = console.browser("auditor")
    begun = time.monotonic()
    data = visitor.get("/overview.json", params={"span": "day"}).json()

    assert time.monotonic() - begun < 5
    assert data["capped"]
    assert data["since"] > time.time() - 86_000
    assert data["calls"]["all"] < 11_000
    assert "There is more than one page reads" in visitor.get("/overview?span=day").text


def test_without_records_it_is_an_empty_page(begin: Callable[..., Console]) -> None:
    """A gateway that was never called has an overview too."""
    console = begin()
    page = console.browser("auditor").get("/overview")

    assert page.status_code == 200
    assert "Every call was." in page.text
