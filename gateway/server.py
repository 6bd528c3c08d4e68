"""uvicorn, set up for the gateway, and its HTTP protocol with bounds on what reaches the parser.

The parser's own refusals are bare text, it bounds neither the number of headers nor the time they take, and a request
with a body but no length would be run with an empty body while its bytes are read as a second request. All three are
settled here, in front of the application, with the one error shape. So is the way out: a server that closes at once
loses what a balancer is sending it just then.
"""

from __future__ import annotations

import asyncio
import gc
import os
import re
import signal
import socket
import sys
import tomllib
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import ClassVar, Final

import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.supervisors import Multiprocess

from gateway import config
from gateway.app import create_app
from gateway.config import Server, Settings
from gateway.endpoints import parser_answer
from gateway.errors import Complaint, Problem
from gateway.metrics import FOLDER_VARIABLE

_UPGRADE: Final = re.compile(rb"\r\nupgrade[ \t]*:", re.IGNORECASE)
_FIRST_SECONDS: Final = 1.0
_LOADED_SECONDS: Final = 60
_INTERIM: Final = b"HTTP/1.1 100 "
_OPS_PORT: Final = "GATEWAY_OPS_PORT"
_WITH_BODY: Final = frozenset((b"POST", b"PUT", b"PATCH"))


class _Together:
    """A connection on which an answer's head waits for its body: sent apart, they are two packets and wake the caller twice."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head: bytes | None = None
        self._begun = False

    def write(self, data: bytes) -> None:
        if not self._begun and not data.startswith(_INTERIM):
            self._begun, self._head = True, data
            return
        self._transport.write(self._head + data if self._head else data)
        self._head = None

    def flush(self) -> None:
        if self._head:
            self._transport.write(self._head)
            self._head = None

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()


class Departure:
    """The time between SIGTERM and the end of listening: every call is still taken, and every caller asked not to come again.

    A balancer sends calls until it has seen readiness fail, on new connections and on those it keeps; neither may be closed
    before. A second signal, or SIGINT from whoever sits before it, ends this time at once.
    """

    def __init__(self, seconds: float) -> None:
        self.begun = False
        """Whether this process is about to end."""
        self._seconds = seconds

    def take_signals(self) -> None:
        """Stand before whoever takes SIGTERM now; it gets the signal when the time is over. Needs a running loop."""
        loop, end = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)
        if not callable(end):
            return

        def begin(number: int, frame: FrameType | None) -> None:
            if self.begun or not self._seconds:
                self.begun = True
                end(number, frame)
                return
            self.begun = True
            loop.call_soon_threadsafe(loop.call_later, self._seconds, end, number, None)

        signal.signal(signal.SIGTERM, begin)


class GatewayProtocol(HttpToolsProtocol):
    """One connection of a caller."""

    bounds: Server = Server()
    """Set once per process, before the first connection."""
    departure: Departure = Departure(0)
    """Set with it."""
    refused: ClassVar[Counter[str]] = Counter()
    """How many requests were refused here, by problem, on all connections of the process."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock for the first request's head."""
        super().connection_made(transport)
        self._refused = False
        self._answering: RequestResponseCycle | None = None
        self._in_message = False
        self._in_head = False
        self._moved = False
        self._gathered = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._begin_head()
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, unless this connection was refused already."""
        if self._refused:
            return
        if not self._in_message and b"pgrade" in data:
            data = _without_upgrade(data)
        self._moved = False
        super().data_received(data)
        # The parser gathers a whole name or value before it hands it over: what does not move on is counted here.
        self._gathered = 0 if self._moved else self._gathered + len(data)
        if self._gathered > self.bounds.header_bytes_max:
            self.refuse(Problem.headers_too_large)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the way back open for the answers to what was asked whole: who has said all may still listen."""
        if self._refused or self.cycle is None or self.cycle.response_complete or self.cycle.more_body:
            return False
        self.cycle.keep_alive = False
        return True

    def on_message_begin(self) -> None:
        """Begin a head: count anew, and start the clock unless it runs."""
        self._begin_head()
        self._in_message = self._in_head = self._moved = True
        if self._head_timer is None:
            self._arm()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Count the address."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header, and note how long the body claims to be."""
        self._head_headers += 1
        self._count(len(name) + len(value) + 4)
        if not self._in_head:
            return  # A trailer: it comes after the credential was read, and must not become one.
        lower = name.lower()
        if lower == b"content-length":
            self._lengths += 1
        elif lower == b"transfer-encoding":
            self._encodings.append(value.strip().lower())
        elif lower == b"host":
            self._hosts += 1
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Let a whole head pass, or refuse what two readers could read in two ways, before anything is run."""
        self._disarm()
        self._in_head = False
        self._moved = True
        if self._refused:
            return
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1") or self._encodings not in ([], [b"chunked"]) or self.parser.should_upgrade():
            self.refuse(Problem.http_malformed)
        elif self._hosts > 1 or (version == "1.1" and not self._hosts):
            self.refuse(Problem.http_malformed)  # RFC 9112 section 3.2
        elif self.parser.get_method() in _WITH_BODY and not self._lengths and not self._encodings:
            # HTTP/1.1 takes such a body to be empty (RFC 9112 section 6.3); the documented C client then sends one anyway.
            self.refuse(Problem.length_required)
        else:
            super().on_headers_complete()
            if self.departure.begun:
                self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Take a part of the body, unless the request was refused."""
        self._moved = True
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request, unless it was refused."""
        self._in_message = False
        self._moved = True
        if not self._refused:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the parser's words are not for callers
        """Answer what the parser refused."""
        empty = "Empty Content-Length" in str(sys.exc_info()[1])
        self.refuse(Problem.length_empty if empty else Problem.http_malformed)

    def shutdown(self) -> None:
        """Close unless a request is under way or on its way; one that comes on a new connection has a moment to begin."""
        self.departure.begun = True
        if self._refused or not (self._in_head or self.cycle is None):
            super().shutdown()
        elif not self._in_head:
            # Whoever has just connected sends at once; closing now would lose what it sends.
            self._disarm()
            self._head_timer = self.loop.call_later(min(_FIRST_SECONDS, self.bounds.header_timeout_ms / 1000), self._head_late)

    def refuse(self, problem: Problem) -> None:
        """Answer and close, once. A request that is being answered gets its own answer first, and this one none."""
        if self._refused:
            return
        self._refused = True
        self.refused[problem.slug] += 1
        self._disarm()
        answering = self._answering
        if answering is not None and not answering.response_complete:
            self.pipeline.clear()
            if not answering.more_body:
                answering.keep_alive = False
                return
            # Its own body is what was refused: nothing of it has been run.
            answering.disconnected = True
            answering.message_event.set()
        if not self.transport.is_closing():
            self.transport.write(parser_answer(problem, self.headers or [], self.bounds.cors_origins))
            self.transport.close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        cycle.transport = self._sending = _Together(self.transport)  # type: ignore[assignment]  # all that a cycle asks of one
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Send what there was to be sent alone, and go on."""
        self._sending.flush()
        super().on_response_complete()

    def _begin_head(self) -> None:
        self._head_bytes = self._head_headers = self._lengths = self._hosts = 0
        self._encodings: list[bytes] = []

    def _count(self, count: int) -> None:
        self._head_bytes += count
        if self._head_bytes > self.bounds.header_bytes_max or self._head_headers > self.bounds.headers_max:
            self.refuse(Problem.headers_too_large)

    def _arm(self) -> None:
        self._head_timer = self.loop.call_later(self.bounds.header_timeout_ms / 1000, self._head_late)

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_late(self) -> None:
        self._head_timer = None
        if self._in_message or self._gathered:
            self.refuse(Problem.header_timeout)
        elif not self.transport.is_closing():
            self.transport.close()


def _without_upgrade(data: bytes) -> bytes:
    """Return a request that no longer offers another protocol: the parser would give up its body.

    Java's client offers h2c with every first request; the offer may be ignored (RFC 9110 section 7.8).
    """
    head, end, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"\r\nx-offered:", head) + end + rest


def app_from_environment() -> Starlette:
    """Return the application of one worker process, by the configuration file that `GATEWAY_CONFIG` names."""
    settings = config.parse(tomllib.loads(Path(os.environ["GATEWAY_CONFIG"]).read_text(encoding="utf-8")), os.environ)
    GatewayProtocol.bounds = settings.server
    GatewayProtocol.departure = departure = Departure(settings.server.lame_duck_seconds)
    departure.take_signals()
    app = create_app(
        settings,
        os.environ,
        leaving=lambda: departure.begun,
        http_refused=GatewayProtocol.refused,
        ops_port=int(os.environ.get(_OPS_PORT, "0")),
    )
    app.router.redirect_slashes = False
    # What was made until here stays, and calls leave hardly a circle behind: looking for them often is a twentieth of the work.
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 10, 10)
    return app


def bind(host: str, port: int, fix: str = "pass --port N") -> socket.socket:
    """Return a listening socket's address taken. Raises: BindError, one line with the fix."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "no such address"
        raise BindError(f"cannot listen on {host}:{port} ({reason}): stop what uses it, or {fix}") from None
    listener.set_inheritable(True)
    return listener


class BindError(Complaint):
    """The address to listen on cannot be had. The message is one line: the reason and the fix."""


def uvicorn_config(settings: Settings, workers: int) -> uvicorn.Config:
    """Return uvicorn's settings: nothing of its own is logged, no header of its own is sent."""
    server = settings.server
    return uvicorn.Config(
        "gateway.server:app_from_environment",
        factory=True,
        workers=workers,
        loop="uvloop",
        http=GatewayProtocol,
        ws="none",
        interface="asgi3",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        proxy_headers=False,
        # A worker answers once it has been loaded, which takes longer than uvicorn's 5 s where several compete for a CPU: killed
        # for that and started again, it would never come up.
        timeout_worker_healthcheck=_LOADED_SECONDS,
        timeout_keep_alive=server.keep_alive_seconds,
        timeout_graceful_shutdown=server.finish_seconds,
        backlog=2048,
    )


class Workers(Multiprocess):
    """The processes that share listening sockets."""

    def keep_subprocess_alive(self) -> None:
        """Start another worker in the place of each that died or does not answer."""
        for process in self.processes:
            # While we hold its end of the pipe too, one that dies as it is asked for a sign of life is waited for all the same.
            process.child_conn.close()
        super().keep_subprocess_alive()

    def terminate_all(self) -> None:
        """End every worker, and let go of the sockets: while anybody holds one, connections that nobody takes come to stand."""
        super().terminate_all()
        for listener in self.sockets:
            listener.close()


def serve(settings: Settings, listener: socket.socket, operators: socket.socket | None, workers: int) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is in flight. `operators`: where they get what is for them alone."""
    # uvicorn raises the signals it took once more when it is done, which would kill us before the store is closed.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _finished)
    setup = uvicorn_config(settings, workers)
    listeners = [listener] if operators is None else [listener, operators]
    # Read from the environment, as the settings are: with several workers nothing else comes from here to there.
    os.environ[_OPS_PORT] = str(operators.getsockname()[1] if operators else 0)
    if workers == 1:
        uvicorn.Server(setup).run(sockets=listeners)
        return
    with TemporaryDirectory(prefix="gateway-metrics-") as shared:
        os.environ[FOLDER_VARIABLE] = shared
        Workers(setup, listeners).run()


async def serve_one(app: ASGIApp, listener: socket.socket, bounds: Server) -> None:
    """Serve another application in this process, on its loop, until SIGTERM or SIGINT."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _finished)
    GatewayProtocol.bounds = bounds
    setup = uvicorn.Config(
        app, http=GatewayProtocol, ws="none", lifespan="off", log_config=None, access_log=False, server_header=False,
        proxy_headers=False, timeout_keep_alive=bounds.keep_alive_seconds, timeout_graceful_shutdown=bounds.finish_seconds,
    )  # fmt: skip
    await uvicorn.Server(setup).serve(sockets=[listener])


def _finished(_number: int, _frame: object) -> None:
    """Do nothing: the server was stopped by this signal already."""
