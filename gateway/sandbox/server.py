"""The sandbox over HTTP/1.1, on the bare parser: answers are written byte by byte, the faulty ones too."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import httptools

from gateway.sandbox import contract
from gateway.sandbox.contract import SET_PATH, SUCCESS, UNSET_PATH
from gateway.sandbox.faults import Faults, read_faults
from gateway.sandbox.maskings import Maskings, Rejected

_JSON: Final = "application/json; charset=utf-8"
_HTML: Final = b"<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"
_PHRASES: Final = {
    200: "OK",
    204: "No Content",
    302: "Found",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    409: "Conflict",
    422: "Unprocessable Entity",
    429: "Too Many Requests",
    500: "Internal Server Error",
    502: "Bad Gateway",
    503: "Service Unavailable",
}
_RECORDED_MAX: Final = 100_000
_SUCCESS_ANSWER: Final = contract.head(200, "OK", len(SUCCESS), _JSON, (f"ETag: {contract.etag(SUCCESS)}",)) + SUCCESS


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Whom the sandbox lets in, and how much it has."""

    ssids: tuple[str, ...] = ("sandbox-ssid",)
    user_id: str = "sandbox-user"
    token: str = "sandbox-token"  # noqa: S105 - a stand-in's
    read_only_ssids: tuple[str, ...] = ()
    """Valid, but without the permission: 1015."""
    suspended_ssids: tuple[str, ...] = ()
    """Of a suspended account: 1039."""
    pool: int = 1000
    """Virtual numbers."""
    record: bool = True
    """Whether received calls are kept for reading."""
    faults: Faults = field(default_factory=Faults)


@dataclass(slots=True)
class Request:
    """One request as it came."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes


class Sandbox:
    """The state behind every connection."""

    def __init__(self, config: Config, clock: Callable[[], float]) -> None:
        self._config = config
        self._wall = clock
        self._ahead = 0.0
        self.faults = config.faults
        self._maskings = Maskings(config.pool, self._now)
        self._calls: deque[dict[str, Any]] = deque(maxlen=_RECORDED_MAX)
        self._sequence = 0

    def answer(self, request: Request) -> tuple[bytes, Faults | None]:
        """Return the right answer, and the switches that spoil it (None: nothing does)."""
        path = request.path.partition("?")[0]
        if path in (UNSET_PATH, SET_PATH):
            if request.method == "OPTIONS":
                return contract.head(204, "No Content", None, _JSON), None
            if request.method == "POST":
                return self._call(path, request)
        return self._control(path, request), None

    def _call(self, path: str, request: Request) -> tuple[bytes, Faults | None]:
        # The switches are for unset, the call under test; a set only prepares it, except for codes of its own.
        faults = self.faults if path == UNSET_PATH or self.faults.force_code in (1504, 1505) else Faults()
        if faults is self.faults:
            self.faults = faults.spent()
        code: int | None = None
        body = SUCCESS
        acted = False
        try:
            fields = self._fields(request)
            if faults.force_code is not None:
                code = faults.force_code
            elif faults.acts:
                body = self._act(path, fields, faults)
                acted = True
        except Rejected as rejected:
            code = rejected.code
        if code is not None:
            body = contract.error_body(code, faults.error_shape)
        status = 200 if code is None else faults.error_status
        self._record(request, code, status, acted=acted)
        answer = _SUCCESS_ANSWER if body is SUCCESS and status == 200 else _json_answer(status, body)
        return answer, faults if faults.answer is not None else None

    def _act(self, path: str, fields: dict[str, Any], faults: Faults) -> bytes:
        if path == UNSET_PATH:
            self._maskings.unset(fields, faults.unknowns)
            return SUCCESS
        mask = self._maskings.set(fields)
        return contract.dump({"status": "success", "message": "Your masking set", "mask": mask})

    def _fields(self, request: Request) -> dict[str, Any]:
        """Read the body whatever its content type, and check the credential. Raises: Rejected."""
        fields = _object(request.body)
        if fields is None:
            raise Rejected(1047)
        ssid, user_id, token = (fields.get(name) for name in ("ssid", "userId", "token"))
        if (ssid is not None and (user_id or token)) or (ssid is None and not (user_id and token)):
            raise Rejected(1000)
        if ssid in self._config.read_only_ssids:
            raise Rejected(1015)
        if ssid in self._config.suspended_ssids:
            raise Rejected(1039)
        if ssid is not None and ssid not in self._config.ssids:
            raise Rejected(1014)
        if ssid is None and (user_id, token) != (self._config.user_id, self._config.token):
            raise Rejected(1014)
        return fields

    def _record(self, request: Request, code: int | None, status: int, *, acted: bool) -> None:
        if not self._config.record:
            return
        self._sequence += 1
        self._calls.append(
            {
                "sequence": self._sequence,
                "received_at": self._wall(),
                "path": request.path,
                "headers": request.headers,
                "body": request.body.decode("utf-8", errors="replace"),
                "answered_code": code,
                "answered_status": status,
                "acted": acted,
            }
        )

    def _control(self, path: str, request: Request) -> bytes:
        """Answer the sandbox's own addresses: what it received, its switches, its clock."""
        what = (request.method, path)
        if what == ("GET", "/_sandbox/calls"):
            return _json_answer(200, contract.dump(list(self._calls)))
        if what == ("DELETE", "/_sandbox/calls"):
            self._calls.clear()
        elif what == ("GET", "/_sandbox/maskings"):
            return _json_answer(200, contract.dump(self._maskings.listed()))
        elif what == ("POST", "/_sandbox/faults"):
            try:
                self.faults = read_faults(json.loads(request.body))
            except (ValueError, TypeError, AttributeError) as error:
                return _json_answer(400, contract.dump({"error": str(error)}))
        elif what == ("DELETE", "/_sandbox/faults"):
            self.faults = Faults()
        elif what == ("POST", "/_sandbox/clock"):
            self._ahead += float(json.loads(request.body)["advance_seconds"])
        else:
            return _json_answer(404, contract.dump({"error": "there is nothing here"}))
        return contract.head(204, "No Content", None, _JSON)

    def _now(self) -> float:
        return self._wall() + self._ahead


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
        except httptools.HttpParserError:
            self._write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
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
        if self._task is not None:
            self._waiting.append(self._request)
            return
        answer, faults = self._sandbox.answer(self._request)
        if faults is None:
            self._write(answer)
        else:
            self._task = asyncio.ensure_future(self._spoil(self._request, answer, faults))

    async def _spoil(self, request: Request, answer: bytes, faults: Faults) -> None:
        async for part in _spoiled(request, answer, faults):
            if part is None:
                self._reset()
                return
            self._write(part)
        if faults.answer in ("close", "cut"):
            self._transport.close()
            return
        self._task = None
        while self._waiting and self._task is None:
            self._request = self._waiting.popleft()
            self.on_message_complete()

    def _write(self, data: bytes) -> None:
        self._transport.write(data)

    def _reset(self) -> None:
        """Close with a TCP reset: a linger time of zero makes the kernel send one."""
        peer = self._transport.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


async def _spoiled(request: Request, answer: bytes, faults: Faults) -> AsyncIterator[bytes | None]:  # noqa: C901 - a table of cases
    """Yield the parts of a faulty answer; None stands for a reset."""
    head, _, body = answer.partition(b"\r\n\r\n")
    head += b"\r\n\r\n"
    delay = faults.delay_ms / 1000
    match faults.answer:
        case "slow":
            await asyncio.sleep(delay)
            yield answer
        case "one_byte":
            for position in range(len(answer)):
                yield answer[position : position + 1]
                await asyncio.sleep(delay)
        case "stalled":
            yield head
            await asyncio.Event().wait()
        case "stall_before":
            await asyncio.Event().wait()
        case "cut":
            yield head + body[: len(body) // 2]
        case "reset":
            yield head + body[: len(body) // 2]
            await asyncio.sleep(0.02)
            yield None
        case "huge":
            total = 10 * 1024 * 1024
            yield contract.head(200, "OK", total, _JSON) + b'{"status":"success","message":"'
            for _ in range(160):
                yield b"x" * 65_536
                await asyncio.sleep(0)
        case "close":
            return
        case name:
            yield _whole(name, request, body)


def _whole(name: str | None, request: Request, body: bytes) -> bytes:
    """Return a faulty answer that is sent in one piece."""
    error = {"status": "error", "message": contract.TEXTS[1012], "code": 1012}
    bodies: dict[str | None, tuple[int, bytes]] = {
        "html_200": (200, _HTML),
        "html_502": (502, _HTML),
        "empty": (200, b""),
        "truncated": (200, body[: len(body) // 2]),
        "wrong_charset": (200, '{"status":"error","message":"é","code":1012}'.encode("latin-1")),
        "echo": (200, contract.dump({**error, "message": request.body.decode("utf-8", errors="replace")})),
        "success_with_code": (200, contract.dump({"status": "success", "code": 200, "message": "Your masking unset"})),
        "success_500": (500, SUCCESS),
        "code_text": (200, contract.dump({**error, "code": "1012"})),
        "no_code": (200, contract.dump({"status": "error", "message": "No"})),
        "array": (200, b"[]"),
        "status_429": (429, b"slow down"),
        "redirect": (302, b""),
    }
    status, spoiled = bodies[name]
    more = {"status_429": ("Retry-After: 7",), "redirect": ("Location: /_sandbox/elsewhere",)}.get(name or "", ())
    media = "text/html" if spoiled is _HTML else _JSON
    return contract.head(status, _PHRASES[status], len(spoiled), media, more) + spoiled


def _json_answer(status: int, body: bytes) -> bytes:
    phrase = _PHRASES.get(status, "Status")
    return contract.head(status, phrase, len(body), _JSON, (f"ETag: {contract.etag(body)}",)) + body


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


async def serve(config: Config, listener: socket.socket, clock: Callable[[], float], stop: asyncio.Event) -> None:
    """Serve on a bound socket until `stop` is set."""
    sandbox = Sandbox(config, clock)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(sandbox), sock=listener)
    async with server:
        host, port = listener.getsockname()[:2]
        print(f"sandbox listening on http://{host}:{port}", flush=True)
        await stop.wait()
