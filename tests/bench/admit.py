"""`python -m tests.bench.admit`: what one admission costs this process, beside two libraries that do the limits alone.

Three limits a call: by caller, by number, by account. Each contender runs in a process of its own against one real
server; rounds are interleaved, so that a noisy neighbour disturbs all alike. CPU is the client process'; `redis` is the
server's. Ours also records the intent, compares keys, slot and limits, and charges all or none.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

from tests.bench.__main__ import cpu_seconds, machine
from tests.running import Redis

CALLS = 8_000
NUMBERS = 1_000_000
LIBRARIES = {
    "limits-fixed": "limits: fixed window, three hits",
    "limits-sliding": "limits: sliding window counter, three hits",
    "throttled": "throttled-py: GCRA, three throttles",
}
OWN = {
    "own-3": "this gateway, 3 policies",
    "own-5": "this gateway, with the built-in guards in shadow",
    "own-10": "this gateway, 10 policies of which 3 apply",
    "own-100": "this gateway, 100 policies of which 3 apply",
    "own-intent": "this gateway, 3 policies, and the intent made for each call",
}
Admit = Callable[[str], Awaitable[None]]


async def _own(url: str, what: str) -> Admit:
    from gateway import config
    from gateway.admission import Policies
    from gateway.audit import Auditor, Record
    from gateway.ledger.connect import connect
    from gateway.ledger.journal import Bounds, Journal
    from gateway.ledger.store import Away, RedisLedger
    from gateway.model import Admission, Arrival, Attempt, Bindings, Call, Caller, PhoneNumber, Secret
    from gateway.numbers import Pseudonyms

    policies = int(what) if what.isdigit() else 3
    wide = {"rate": "1000000/s", "burst": 1_000_000}
    tables: dict[str, Any] = {name: {"by": [name], **wide} for name in ("caller", "number", "account")}
    if policies == 5:
        tables |= {name: {**config.BUILT_IN[name], **wide} for name in ("sweep", "repeat")}
    for number in range(policies - 3 if policies > 5 else 0):
        tables[f"other{number}"] = {"by": ["caller"], "services": [f"s{number}"], **wide}
    folder = Path(tempfile.mkdtemp(prefix="gwb"))
    ledger = RedisLedger(
        connect(config.Redis(url=url), None, read_seconds=None), "bench", f"w{secrets.token_hex(3)}", Journal(folder, "w", Bounds(2**40, 86_400, 0)), 5.0,
        Away(spool=True, stale_seconds_max=900), time.monotonic, lambda *_: None, time.time,
    )  # fmt: skip
    pseudonyms = Pseudonyms(Secret("x" * 32), "k1")
    chosen = Policies(config.read_policies(tables), "bench", pseudonyms, 1000)
    auditor, caller = Auditor("bench", pseudonyms), Caller("crm", "k", Bindings(), key_version=1)

    def intent_of(call: Call) -> Record:
        return auditor.intent(Arrival("r" * 32, time.time(), b""), call, Attempt(1, "primary", "v"))

    one = intent_of(Call(caller, "bench", "end", {"m1": PhoneNumber("+919876543210", "+919876543210", "IN")}))

    async def admit(number: str) -> None:
        call = Call(caller, "bench", "end", {"m1": PhoneNumber(number, number, "IN")})
        intent = intent_of(call) if what == "intent" else copy.copy(one)
        answer = await ledger.admit(call, chosen.charges(call), intent, 0, None, chosen.live)
        assert isinstance(answer, Admission)

    return admit


async def _limits(url: str, strategy: str) -> Admit:
    from limits import RateLimitItemPerSecond
    from limits.aio import strategies
    from limits.aio.storage import RedisStorage

    storage = RedisStorage("async+redis+" + url.replace("unix://", "unix://"), implementation="redispy")
    kind = strategies.FixedWindowRateLimiter if strategy == "fixed" else strategies.SlidingWindowCounterRateLimiter
    limiter, item = kind(storage), RateLimitItemPerSecond(1_000_000)

    async def admit(number: str) -> None:
        assert await limiter.hit(item, "caller", "crm")
        assert await limiter.hit(item, "number", number)
        assert await limiter.hit(item, "account", "bench")

    return admit


async def _throttled(url: str) -> Admit:
    from throttled import asyncio as throttled

    store = throttled.RedisStore(server=url)
    quota = throttled.per_sec(1_000_000, burst=1_000_000)
    throttles = [throttled.Throttled(using="gcra", quota=quota, store=store) for _ in range(3)]

    async def admit(number: str) -> None:
        for throttle, key in zip(throttles, ("caller:crm", f"number:{number}", "account:bench"), strict=True):
            assert not (await throttle.limit(key)).limited

    return admit


async def contend(name: str, url: str, concurrency: int, calls: int) -> None:
    """Make calls, and print the CPU microseconds of one, after a warm-up that is not counted."""
    kind, _, what = name.partition("-")
    admit = await {"own": lambda: _own(url, what), "limits": lambda: _limits(url, what), "throttled": lambda: _throttled(url)}[
        kind
    ]()
    left = iter(range(calls))

    async def work(numbers: Any) -> None:
        for number in numbers:
            await admit(f"+9198{number:08d}")

    await work(range(50))
    begun, clock = time.process_time(), time.perf_counter()
    await asyncio.gather(*(work(left) for _ in range(concurrency)))
    print(json.dumps({"cpu_us": (time.process_time() - begun) / calls * 1e6, "seconds": time.perf_counter() - clock}), flush=True)
    os._exit(0)  # Without closing what the libraries leave open.


def measure(name: str, redis: Redis, concurrency: int, calls: int) -> dict[str, float]:
    words = [sys.executable, "-m", "tests.bench.admit", "--contender", name, "--url", redis.url]
    words += ["--concurrency", str(concurrency), "--calls", str(calls)]
    before = cpu_seconds(redis.process.pid)
    figures: dict[str, float] = json.loads(subprocess.run(words, capture_output=True, check=True, text=True).stdout)
    figures["redis_us"] = (cpu_seconds(redis.process.pid) - before) / (calls + 50) * 1e6
    return figures


def fill(redis: Redis, count: int) -> None:
    """Put so many numbers' limits into Redis, as if all had just called."""
    at = int(time.time() * 1_000_000) + 3_600_000_000
    with redis.client() as client:
        pipeline = client.pipeline(transaction=False)
        for number in range(count):
            pipeline.set(f"gw:{{bench}}:limit:number:{number:032x}", f"{at} 1 1000000", px=3_600_000)
            if number % 10_000 == 9_999:
                pipeline.execute()
        pipeline.execute()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.admit", description=__doc__)
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--concurrency", default="1,32")
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--numbers", type=int, default=NUMBERS)
    arguments = parser.parse_args()
    if arguments.contender:
        uvloop.install()  # As in the gateway.
        asyncio.run(contend(arguments.contender, arguments.url, int(arguments.concurrency), arguments.calls))
    levels = [int(text) for text in arguments.concurrency.split(",")]
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    full = "own-3, full"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gwb")))
        redis = stack.enter_context(Redis(folder / "empty", "--appendonly", "no"))
        crowded = stack.enter_context(Redis(folder / "full", "--appendonly", "no"))
        fill(crowded, arguments.numbers)
        for _ in range(arguments.rounds):
            for level in levels:
                for name in (*LIBRARIES, *OWN):
                    found.setdefault((name, level), []).append(measure(name, redis, level, arguments.calls))
                    with redis.client() as client:
                        client.flushall()
                found.setdefault((full, level), []).append(measure("own-3", crowded, level, arguments.calls))
    names = {**LIBRARIES, **OWN, full: f"this gateway, 3 policies, {arguments.numbers:,} numbers in Redis"}
    print(machine())
    print("| contender | callers | CPU µs/call | times own (3 policies) | Redis µs/call |")
    print("|---|--:|--:|--:|--:|")
    for level in levels:
        own = median(one["cpu_us"] for one in found["own-3", level])
        for name, text in names.items():
            cpu = median(one["cpu_us"] for one in found[name, level])
            server = median(one["redis_us"] for one in found[name, level])
            print(f"| {text} | {level} | {cpu:.0f} | {cpu / own:.2f} | {server:.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
