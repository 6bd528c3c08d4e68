"""A closed-loop load generator: so many connections, each sending its next call when it has its answer.

Prints one JSON line: requests, failures, seconds, p50_ms, p99_ms. A process of its own, so that its cost is nobody else's.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import uvloop

PATH = "/api/v2/Masking/unset"


class Caller(asyncio.Protocol):
    def __init__(self, load: Load) -> None:
        self.load = load
        self.buffer = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self.next()

    def next(self) -> None:
        self.begun = time.perf_counter()
        self.transport.write(self.load.request())

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head = self.buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        lower = self.buffer[:head].lower()
        at = lower.find(b"content-length: ")
        if at >= 0:
            end = lower.find(b"\r\n", at)
            if len(self.buffer) < head + 4 + int(lower[at + 16 : end if end > 0 else head]):
                return
        elif not self.buffer.endswith(b"0\r\n\r\n"):
            return
        good = self.buffer.startswith(b"HTTP/1.1 200") and b'"success"' in self.buffer
        self.buffer = b""
        if self.load.answered(time.perf_counter() - self.begun, good=good):
            self.next()
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.load.closed()


class Load:
    def __init__(self, key: str, seconds: float, concurrency: int) -> None:
        self.key, self.seconds, self.concurrency = key, seconds, concurrency
        self.times: list[float] = []
        self.failures = 0
        self.number = 0
        self.open = concurrency
        self.done = asyncio.Event()

    def request(self) -> bytes:
        self.number = (self.number + 7919) % 50_000
        body = b'{"m1":"98765%05d","m2":"91234%05d","expiry_duration":-1}' % (self.number, self.number)
        head = f"POST {PATH} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {self.key}\r\nContent-Type: application/json\r\n"
        return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body

    def answered(self, seconds: float, *, good: bool) -> bool:
        self.times.append(seconds)
        self.failures += not good
        return time.perf_counter() < self.until

    def closed(self) -> None:
        self.open -= 1
        if self.open == 0:
            self.done.set()

    async def run(self, host: str, port: int) -> dict[str, Any]:
        begun = time.perf_counter()
        self.until = begun + self.seconds
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.create_connection(lambda: Caller(self), host, port) for _ in range(self.concurrency)))
        await self.done.wait()
        times = sorted(self.times)
        return {
            "requests": len(times), "failures": self.failures, "seconds": time.perf_counter() - begun,
            "p50_ms": times[len(times) // 2] * 1000, "p99_ms": times[int(len(times) * 0.99)] * 1000,
        }  # fmt: skip


if __name__ == "__main__":
    host, port, key, seconds, concurrency = sys.argv[1:]

    async def main() -> None:
        print(json.dumps(await Load(key, float(seconds), int(concurrency)).run(host, int(port))))

    uvloop.run(main())
