"""The stand-in itself: what each request is answered with, and the addresses by which a test steers it.

It speaks ASGI, for use within a process; `wire` puts it on a socket, where the faults of a connection can really happen.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from gateway.sandbox import contract
from gateway.sandbox.contract import SET_PATH, SUCCESS, TEXTS, UNSET_PATH, Answer, json_answer
from gateway.sandbox.faults import DELIVERIES, ELSEWHERE, SILENT, Faults, read_faults, replaced
from gateway.sandbox.maskings import Maskings, Rejected

_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_DONE: Final = Answer(204)
_OF_SET: Final = frozenset((1504, 1505))
"""Codes that only `set` has a cause for, so that forcing one of them forces it there too."""


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
    recorded_max: int = 100_000
    """How many received calls are kept for reading; the oldest go first. 0: none."""
    faults: Faults = field(default_factory=Faults)


@dataclass(slots=True)
class Request:
    """One request as it came."""

    method: str
    path: str
    """With its query."""
    headers: list[tuple[str, str]]
    body: bytes
    keep_alive: bool = True
    """Whether the caller wants the connection kept."""


class Sandbox:
    """The state behind every connection, and an ASGI application."""

    def __init__(self, config: Config, clock: Callable[[], float]) -> None:
        self._config = config
        self._wall = clock
        self._ahead = 0.0
        self.faults = config.faults
        self._maskings = Maskings(config.pool, self._now)
        self._calls: deque[dict[str, Any]] = deque(maxlen=config.recorded_max)
        self._sequence = 0
        self._ended: dict[str, int] = {}
        """By ssid or userId: the code with which it is refused."""
        self._begun: list[str] = []
        """Session ids that became valid while it ran."""

    def answer(self, request: Request) -> tuple[Answer, Faults | None]:
        """Return the answer, and the switches by which its delivery fails (None: it does not)."""
        path = request.path.partition("?")[0]
        if path in (UNSET_PATH, SET_PATH):
            if request.method == "POST":
                return self._call(path, request)
            if request.method == "OPTIONS":
                return _DONE, None
            return json_answer(405, {"error": f"{path} takes POST"}, more=(("Allow", "POST, OPTIONS"),)), None
        try:
            return self._control(path, request), None
        except ValueError as error:
            return json_answer(400, {"error": str(error)}), None

    def _call(self, path: str, request: Request) -> tuple[Answer, Faults | None]:
        faults = self._switches(path)
        acted = False
        answer = SUCCESS
        try:
            fields = self._fields(request)
            if faults.force_code is not None:
                raise Rejected(faults.force_code)  # noqa: TRY301 - refused as by its real cause
            if faults.acts:
                answer = self._act(path, fields, faults)
                acted = True
        except Rejected as rejected:
            answer = contract.error(rejected.code, faults.error_status, faults.error_shape)
        if faults.answer is not None:
            answer = replaced(faults.answer, answer, request.body)
        self._record(request, answer, acted=acted, silent=faults.answer in SILENT)
        return answer, faults if faults.answer in DELIVERIES else None

    def _switches(self, path: str) -> Faults:
        """Return the switches that hold for this call, and count it against `times`."""
        faults = self.faults
        if path == UNSET_PATH or faults.force_code in _OF_SET:
            self.faults = faults.spent()
            return faults
        # A set prepares the call under test: it is not spoiled, but its errors look as this host's errors do.
        return Faults(error_status=faults.error_status, error_shape=faults.error_shape)

    def _act(self, path: str, fields: dict[str, Any], faults: Faults) -> Answer:
        if path == UNSET_PATH:
            self._maskings.unset(fields, faults.unknowns)
            return SUCCESS
        mask = self._maskings.set(fields)
        return json_answer(200, {"status": "success", "message": "Your masking set", "mask": mask})

    def _fields(self, request: Request) -> dict[str, Any]:
        """Read the body whatever its content type, and check the credential. Raises: Rejected."""
        fields = _object(request.body)
        if fields is None:
            raise Rejected(1047)
        ssid, user_id, token = (fields.get(name) for name in ("ssid", "userId", "token"))
        if (ssid and (user_id or token)) or not (ssid or (user_id and token)):
            raise Rejected(1000)
        shown = ssid or user_id
        if isinstance(shown, str) and shown in self._ended:
            raise Rejected(self._ended[shown])
        if not ssid:
            if (user_id, token) != (self._config.user_id, self._config.token):
                raise Rejected(1014)
        elif ssid in self._config.read_only_ssids:
            raise Rejected(1015)
        elif ssid in self._config.suspended_ssids:
            raise Rejected(1039)
        elif ssid not in self._config.ssids and ssid not in self._begun:
            raise Rejected(1014)
        return fields

    def _record(self, request: Request, answer: Answer, *, acted: bool, silent: bool = False) -> None:
        if not self._config.recorded_max:
            return
        self._sequence += 1
        self._calls.append(
            {
                "sequence": self._sequence,
                "received_at": self._wall(),
                "path": request.path,
                "headers": request.headers,
                "body": request.body.decode("utf-8", errors="replace"),
                "answered_code": None if silent else answer.code,
                "answered_status": None if silent else answer.status,
                "acted": acted,
            }
        )

    def _control(self, path: str, request: Request) -> Answer:
        """Answer the sandbox's own addresses. Raises: ValueError that says what is wrong with the request."""
        match request.method, path:
            case "GET", "/_sandbox/calls":
                return json_answer(200, list(self._calls))
            case "DELETE", "/_sandbox/calls":
                self._calls.clear()
            case "GET", "/_sandbox/maskings":
                return json_answer(200, self._maskings.listed())
            case "GET", "/_sandbox/faults":
                return json_answer(200, self.faults.told())
            case "POST", "/_sandbox/faults":
                self.faults = read_faults(_wanted(request.body))
            case "DELETE", "/_sandbox/faults":
                self.faults = Faults()
            case "POST", "/_sandbox/sessions":
                self._session(_wanted(request.body))
            case "POST", "/_sandbox/clock":
                self._ahead += _seconds(_wanted(request.body))
            case _, address if address == ELSEWHERE:
                answer = json_answer(200, {"message": "a redirect was followed"})
                self._record(request, answer, acted=False)
                return answer
            case _:
                return json_answer(404, {"error": "there is nothing here"})
        return _DONE

    def _session(self, wanted: dict[str, Any]) -> None:
        """Begin a session, or end one so that it is refused with a code. Raises: ValueError."""
        name, code = wanted.get("credential"), wanted.get("ended_with")
        if not isinstance(name, str) or not name:
            raise ValueError("credential: must be an ssid or a userId")
        if code is not None and (not isinstance(code, int) or code not in TEXTS):
            raise ValueError("ended_with: must be one of the vendor's codes, such as 1014, or null")
        if code is None:
            self._ended.pop(name, None)
            self._begun.append(name)
        else:
            self._ended[name] = code

    def _now(self) -> float:
        return self._wall() + self._ahead

    async def __call__(self, scope: MutableMapping[str, Any], receive: _Receive, send: _Send) -> None:
        """Serve one ASGI scope. Raises: ConnectionError for a fault that only a socket can have."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        request = await _received(scope, receive)
        answer, faults = self.answer(request)
        if faults is not None:
            if faults.answer != "slow":
                raise ConnectionError(f"{faults.answer} happens on a socket only: run python -m gateway.sandbox")
            await asyncio.sleep(faults.delay_ms / 1000)
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers()]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if request.method == "HEAD" else answer.body})


def create_app(config: Config, clock: Callable[[], float] = time.time) -> Sandbox:
    """Return the sandbox as an ASGI application; `clock` gives Unix seconds."""
    return Sandbox(config, clock)


async def _received(scope: MutableMapping[str, Any], receive: _Receive) -> Request:
    path = scope["path"] + (f"?{scope['query_string'].decode('latin-1')}" if scope.get("query_string") else "")
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
    request = Request(scope["method"], path, headers, b"")
    more = True
    while more:
        message = await receive()
        request.body += message.get("body", b"")
        more = message.get("more_body", False)
    return request


async def _live(receive: _Receive, send: _Send) -> None:
    """Say yes to start-up and shutdown: there is nothing to open."""
    while True:
        told = (await receive())["type"]
        await send({"type": f"{told}.complete"})
        if told == "lifespan.shutdown":
            return


def _wanted(body: bytes) -> dict[str, Any]:
    value = _object(body)
    if value is None:
        raise ValueError("the body must be a JSON object")
    return value


def _seconds(wanted: dict[str, Any]) -> float:
    value = wanted.get("advance_seconds")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("advance_seconds: must be a number")
    return float(value)


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _refuse_constant(name: str) -> NoReturn:
    """Refuse NaN and Infinity, which Python reads and no other JSON parser does."""
    raise ValueError(name)
