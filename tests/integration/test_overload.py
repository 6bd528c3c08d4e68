"""More calls than the vendor takes: a failing vendor is left alone, a slow one holds up its own account, memory stays bounded."""

from __future__ import annotations

import asyncio
import json
import resource
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.test_main_job import assert_refused
from tests.running import UNSET, Stack, until

CALLERS = 10_000
MEGABYTES_MAX = 150
"""What so many waiting callers may take: 15 KB each, most of it connections and requests that are read."""


def metric(stack: Stack, line: str) -> float:
    text = stack.metrics()
    return next(float(row.rpartition(" ")[2]) for row in text.splitlines() if row.startswith(line))


def test_a_vendor_that_fails_is_left_alone_until_probes_succeed(start: Callable[..., Stack]) -> None:
    """Calls are refused at once, unrecorded as intents and uncharged; it is told, and ends by itself."""
    stack = start(upstream="breaker_calls = 10\nbreaker_seconds = 4")
    m1, m2 = stack.masked()
    stack.fault(answer="html_502")
    for _ in range(10):
        assert_refused(stack.unset(m1=m1, m2=m2), 502, "vendor_failed", origin="vendor")
    before = len(stack.vendor_calls())

    answer = stack.unset(m1=m1, m2=m2)

    body = assert_refused(answer, 503, "upstream_paused")
    assert int(answer.headers["retry-after"]) == body["retry_after"]
    assert 2 <= body["retry_after"] <= 4
    assert [record["stage"] for record in stack.records(body["request_id"])] == ["refusal"]
    assert len(stack.vendor_calls()) == before
    ready = stack.http.get(stack.url + "/readyz")
    assert (ready.status_code, ready.json()["checks"]["account.test.upstream"]) == (200, "UpstreamPaused")
    assert metric(stack, 'gateway_upstream_paused{account="test"}') == 1
    # Looked at again, it still fails: then it is left alone for longer.
    until(lambda: stack.unset(m1=m1, m2=m2).json()["error"] == "vendor_failed", what="a probe")
    assert 4 < int(stack.unset(m1=m1, m2=m2).headers["retry-after"]) <= 8

    stack.no_faults()
    until(lambda: stack.unset(m1=m1, m2=m2).status_code == 200, what="a probe that is answered")
    assert metric(stack, 'gateway_upstream_paused{account="test"}') == 1
    for _ in range(3):  # There is nothing to end any more, which is an answer as good.
        assert_refused(stack.unset(m1=m1, m2=m2), 404, "masking_not_found", origin="vendor")
    assert metric(stack, 'gateway_upstream_paused{account="test"}') == 0
    log = stack.gateway_log()
    assert (log.count('"upstream.paused"'), log.count('"upstream.resumed"')) == (2, 1)


def recorded(stack: Stack) -> int:
    return sum(row.get("count", 1) for row in stack.whole_stream() if row["stage"] in ("outcome", "refusal"))


def rss_megabytes(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(pid)


async def answers_of(port: int, key: str, callers: int, seconds: float) -> Counter[str]:
    """Let so many callers call at once; return how often each answer came."""
    body = b'{"m1":"9876543210","expiry_duration":-1}'
    head = f"POST {UNSET} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: {len(body)}\r\n\r\n"
    found: Counter[str] = Counter()
    limit = asyncio.Semaphore(500)

    async def call() -> None:
        async with limit:  # Of those that connect at once; a backlog is not what is tried here.
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line.split(b":")[1]) for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        told = json.loads(await reader.readexactly(length))
        found[told.get("error", told["status"])] += 1
        writer.close()

    async with asyncio.timeout(seconds):
        await asyncio.gather(*(call() for _ in range(callers)))
    return found


@pytest.fixture
def many_files() -> int:
    """Let this process and its children open many files; return for how many callers that is enough."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 3 * CALLERS
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(CALLERS, soft - 1000)


@pytest.mark.timeout(300)
def test_ten_thousand_callers_wait_in_bounded_memory(many_files: int, start: Callable[..., Stack]) -> None:
    """Each gets one answer; those that have waited longest make room; another account is served meanwhile; all of it is recorded."""
    more = '[accounts.other]\nbrand = "SANDBOX"\nservices = ["other"]\n[accounts.other.primary]\nssid = { env = "VENDOR_SSID" }'
    stack = start(
        more=more,
        upstream="connections_max = 8\nwaiting_max = 500\npool_timeout_ms = 60000",
        server="drain_seconds = 130\nheader_timeout_ms = 10_000\nbody_timeout_ms = 10_000",
    )
    port = int(stack.url.rpartition(":")[2])
    other = stack.issue("other")[0]
    stack.fault(answer="slow", delay_ms=150)
    before = rss_megabytes(stack.gateway.pid)
    peaks: list[float] = []
    beside: list[float] = []

    async def watch() -> None:
        while True:
            peaks.append(rss_megabytes(stack.gateway.pid))
            await asyncio.sleep(0.2)

    async def call_other() -> None:
        while True:
            began = time.monotonic()
            answer = await asyncio.to_thread(stack.unset, key=other, m1="9876500000")
            assert answer.json()["error"] == "masking_not_found"
            beside.append(time.monotonic() - began)

    async def work() -> Counter[str]:
        tasks = [asyncio.create_task(watch()), asyncio.create_task(call_other())]
        try:
            return await answers_of(port, stack.key, many_files, 200)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(work())
    print(found, before, max(peaks), len(beside))
    assert sum(found.values()) == many_files
    assert found["upstream_busy"] > many_files / 2
    assert found.keys() <= {"upstream_busy", "masking_not_found"}
    assert max(peaks) - before < MEGABYTES_MAX
    assert beside
    stack.assert_alive()
    until(lambda: recorded(stack) >= many_files, what="all being recorded")
