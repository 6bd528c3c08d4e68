"""The sandbox over HTTP/1.1, on the bare parser: what a connection may do wrong needs the connection itself."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final

import httptools

from gateway.sandbox.contract import SUCCESS, Answer
from gateway.sandbox.faults import Faults
from gateway.sandbox.server import Config, Request, Sandbox, create_app

_SUCCESS_BYTES: Final = SUCCESS.head() + SUCCESS.body
_BEFORE_RESET_SECONDS: Final = 0.02
"""A reset discards what the caller has not read yet; so long it has for reading the first half."""


class Connection(asyncio.Protocol):
    """One connection; requests are answered one after the other."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[Request] = deque()
        self._task: asyncio.Task[None] | None = None
        self._request = Request("", "", [], b"")

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # of a stream, always
        """Keep the transport."""
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's signature
        """Give up what is being answered."""
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        """Feed the parser; what it refuses gets the bare answer real servers give."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Answered as if nothing had been asked, which HTTP allows; the parser has stopped and is replaced.
            self._parser = httptools.HttpRequestParser(self)
        except httptools.HttpParserError:
            self._transport.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            self._transport.close()

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._request = Request("", "", [], b"")

    def on_url(self, url: bytes) -> None:
        """Take the address."""
        self._request.path += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, as it was written."""
        self._request.headers.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._request.body += body

    def on_message_complete(self) -> None:
        """Answer, or queue behind the answer under way."""
        self._request.method = self._parser.get_method().decode()
        self._request.keep_alive = self._parser.should_keep_alive()
        if self._task is None:
            self._answer(self._request)
        else:
            self._waiting.append(self._request)

    def _answer(self, request: Request) -> None:
        if self._transport.is_closing():
            return  # Sent behind a request that asked for the end of the connection.
        answer, faults = self._sandbox.answer(request)
        data = _bytes(answer, request)
        if faults is None:
            self._transport.write(data)
            self._finish(request)
        else:
            self._task = asyncio.ensure_future(self._deliver(request, data, faults))

    async def _deliver(self, request: Request, data: bytes, faults: Faults) -> None:
        async for part in _parts(data, faults):
            self._transport.write(part)
        if faults.answer == "reset":
            self._reset()
        elif faults.answer in ("close", "cut"):
            self._transport.close()
        else:
            self._finish(request)
        self._task = None
        while self._waiting and self._task is None:
            self._answer(self._waiting.popleft())

    def _finish(self, request: Request) -> None:
        if not request.keep_alive:
            self._transport.close()

    def _reset(self) -> None:
        """Close with a TCP reset: a linger time of zero makes the kernel send one."""
        peer = self._transport.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


async def serve(
    config: Config,
    listener: socket.socket | None = None,
    clock: Callable[[], float] = time.time,
    stop: asyncio.Event | None = None,
) -> None:
    """Serve until `stop` is set or the task is cancelled, and say where on stdout; without a listener on a free local port."""
    sandbox = create_app(config, clock)
    bound = listener or socket.create_server(("127.0.0.1", 0), backlog=1024)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(sandbox), sock=bound)
    host, port = bound.getsockname()[:2]
    print(f"sandbox listening on http://{host}:{port}", flush=True)
    try:
        await (stop or asyncio.Event()).wait()
    finally:
        server.close()  # Not waited for: connections that stall on purpose would never let go.


def _bytes(answer: Answer, request: Request) -> bytes:
    if answer is SUCCESS and request.keep_alive:
        return _SUCCESS_BYTES
    head = answer.head(keep_alive=request.keep_alive)
    return head if request.method == "HEAD" else head + answer.body


async def _parts(data: bytes, faults: Faults) -> AsyncIterator[bytes]:
    """Yield the parts of an answer as the switch says they go out."""
    delay = faults.delay_ms / 1000
    body_at = data.index(b"\r\n\r\n") + 4
    half = body_at + (len(data) - body_at) // 2
    match faults.answer:
        case "slow":
            await asyncio.sleep(delay)
            yield data
        case "one_byte":
            for position in range(len(data)):
                yield data[position : position + 1]
                await asyncio.sleep(delay)
        case "stalled":
            yield data[:body_at]
            await asyncio.Event().wait()
        case "stall_before":
            await asyncio.Event().wait()
        case "cut":
            yield data[:half]
        case "reset":
            yield data[:half]
            await asyncio.sleep(_BEFORE_RESET_SECONDS)
        case _:
            return
