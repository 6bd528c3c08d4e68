"""A balancer before replicas: keeps connections to them, asks them whether they are ready, and tries no call twice.

What a replica did not get goes to another one; what was sent to one that then says nothing is a failed call, since a POST
must not be repeated. That is what nginx and HAProxy do by default.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections import Counter
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.chaos.threads import InThread

ASK_SECONDS: Final = 0.1
WAY_SECONDS: Final = 0.01
"""What it sends arrives so much later; what a replica does meanwhile it cannot know."""
_LENGTH: Final = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_CLOSE: Final = re.compile(rb"(?i)\r\nconnection: *close")
_FAILED: Final = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nX-Failed: the-balancer\r\n\r\n"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(eq=False)
class Replica:
    """One address that calls go to while it is ready."""

    port: int
    ready: bool = False
    idle: list[Streams] = field(default_factory=list)


class Balancer(InThread):
    """Serves on a free port, in a thread of its own."""

    def __init__(self, ports: Sequence[int]) -> None:
        self.replicas = [Replica(port) for port in ports]
        self.sent: Counter[int] = Counter()
        """Calls, by the replica's port."""
        self.kept: Counter[int] = Counter()
        """Those that went over a connection that had served one before."""
        self.failed: list[str] = []
        """Calls of which nobody knows what came, or that nobody was there for."""
        self._turns = itertools.count()
        super().__init__()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._served, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._asking = [asyncio.ensure_future(self._ask_for_ever(replica)) for replica in self.replicas]
        self._ready.set()
        await self._stop.wait()
        server.close()
        await self._end_the_rest()
        for replica in self.replicas:
            _close(*replica.idle)

    async def _ask_for_ever(self, replica: Replica) -> None:
        while True:
            replica.ready = await _soon(self._is_ready(replica))
            await asyncio.sleep(ASK_SECONDS)

    async def _is_ready(self, replica: Replica) -> bool:
        streams = await asyncio.open_connection("127.0.0.1", replica.port)
        try:
            streams[1].write(b"GET /readyz HTTP/1.1\r\nHost: replica\r\nConnection: close\r\n\r\n")
            return b" 200 " in await streams[0].readuntil(b"\r\n")
        finally:
            _close(streams)

    async def _served(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not reader.at_eof():
                writer.write(await self._answer(await _message(reader)))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # The caller has gone.
        finally:
            writer.close()

    async def _answer(self, request: bytes) -> bytes:
        for replica in self._in_turn():
            streams = await self._connected(replica)
            if streams is None:
                replica.ready = False
                continue
            self.sent[replica.port] += 1
            try:
                await asyncio.sleep(WAY_SECONDS)
                streams[1].write(request)
                answer = await _message(streams[0])
            except (asyncio.IncompleteReadError, OSError) as error:
                _close(streams)
                self.failed.append(f"{replica.port}: {error!r}")
                return _FAILED
            if _CLOSE.search(answer):
                _close(streams)
            else:
                replica.idle.append(streams)
            return answer
        self.failed.append("no replica is ready")
        return _FAILED

    def _in_turn(self) -> list[Replica]:
        ready = [replica for replica in self.replicas if replica.ready]
        first = next(self._turns) % max(1, len(ready))
        return ready[first:] + ready[:first]

    async def _connected(self, replica: Replica) -> Streams | None:
        while replica.idle:
            streams = replica.idle.pop()
            if not streams[0].at_eof() and streams[0].exception() is None:
                self.kept[replica.port] += 1
                return streams
            _close(streams)
        try:
            return await asyncio.open_connection("127.0.0.1", replica.port)
        except OSError:
            return None


async def _message(reader: asyncio.StreamReader) -> bytes:
    """Return a request or an answer, whole. Raises: asyncio.IncompleteReadError, OSError."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = _LENGTH.search(head)
    return head + await reader.readexactly(int(length[1]) if length else 0)


async def _soon(asked: Awaitable[bool]) -> bool:
    try:
        return await asyncio.wait_for(asked, 10.0)
    except (OSError, asyncio.IncompleteReadError, TimeoutError):
        return False


def _close(*streams: Streams) -> None:
    for _, writer in streams:
        writer.close()
