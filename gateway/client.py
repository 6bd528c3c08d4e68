"""The gateway for Python services: `Client`, and `AsyncClient` for asyncio. Both do one thing, `unset`.

A call is tried again where the gateway says that may help, where nobody answered, and where the answer was lost; under one
`Idempotency-Key` for all its tries, so that the gateway makes it once. One time limit holds for everything. `_Call` decides,
and touches nothing; the clients send, wait and raise. Knows nothing of the rest of the package, so that importing it is cheap.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final, Self, TypedDict, Unpack
from uuid import uuid4

import httpx

_PATH: Final = "/api/v2/Masking/unset"
_ADDRESS: Final = re.compile(r"https?://[^\s/?#@]+(/[^\s?#]*)?")
_VISIBLE: Final = re.compile(r"[!-~]+")
_ANSWER_BYTES_MAX: Final = 65_536
_TIMEOUT_MS_MAX: Final = 600_000
_CONNECT_SECONDS_MAX: Final = 5.0
_WAY_BACK_SECONDS_MAX: Final = 0.1
"""That the gateway is told less than is left, so that its own answer still comes in time."""
_PAUSE_SECONDS: Final = 0.2
_PAUSE_SECONDS_MAX: Final = 5.0
_NOT_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
UNKNOWN: Final = frozenset((
    "internal", "upstream_timeout", "upstream_broken", "upstream_unreadable", "vendor_something_wrong", "vendor_database_down",
    "vendor_internal", "vendor_failed", "idempotency_running", "idempotency_unknown",
))  # fmt: skip
"""The errors of the gateway after which nobody knows whether the vendor acted, or is about to."""


class Fields(TypedDict, total=False):
    """What a call may say; at least one number. What is not given is not sent: None is refused, for it would mean more."""

    m1: str
    m2: str
    mask: str
    """The two parties and the virtual number between them, written in any way."""
    expires_in_minutes: int
    """When the masking is to end, 1 or more from now. Neither this nor `expires_at`: it ends at once."""
    expires_at: datetime
    """With its zone; seconds count."""


@dataclass(frozen=True, slots=True)
class Done:
    """The vendor carried the call out."""

    request_id: str
    """Leads to the gateway's records."""
    operation: str
    """`end` or `reschedule`."""
    message: str
    """The vendor's words."""
    replayed: bool
    """Whether the call was made before under its key, and this is the answer it got then."""


@dataclass(eq=False)
class GatewayError(Exception):
    """The call came to nothing, or nobody knows: the last try's answer, and which of the classes below it amounts to."""

    message: str
    """What is wrong, and what to do about it."""
    error: str
    """The gateway's name for it, as in its problem table; the client's own are `unreachable`, `no_answer`, `redirected` and
    `not_the_gateway`."""
    status: int | None
    """HTTP status; None: there was no answer."""
    code: int | None
    """The vendor's code for it, where it has one."""
    retryable: bool
    """Whether the same call may succeed later."""
    origin: str
    """Who says so: `gateway`, `vendor`, or `client`."""
    field: str | None
    """The field at fault, by the gateway's name: `expiry_time` is `expires_at`, `expiry_duration` is `expires_in_minutes`."""
    policy: str | None
    """The limit that refused."""
    retry_after: float | None
    """Seconds until a retry may pass."""
    request_id: str
    """Of the last try; leads to the gateway's records."""
    tries: int
    """How often it was asked for."""

    def __str__(self) -> str:
        return f"{self.message} ({self.error}, request {self.request_id}, tries {self.tries})"


class Refused(GatewayError):
    """It was not carried out, and would not be if it were asked for again as it is.

    `masking_not_found` in more than one of `tries` may mean that an earlier one ended the masking.
    """


class Unavailable(GatewayError):
    """It was not carried out, and may be later: the gateway cannot be reached, or cannot make calls now."""


class RateLimited(Unavailable):
    """It was not carried out: a limit is used up for `retry_after` seconds."""


class Unknown(GatewayError):
    """Nobody knows whether the vendor acted. Asking again with the same `idempotency_key` does no harm."""


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: httpx.Headers
    body: bytes


@dataclass(frozen=True, slots=True)
class _Failure:
    """No answer. Not the exception itself, which holds the request and thereby the key."""

    not_sent: bool
    detail: str = ""


_LATE: Final = _Failure(not_sent=False)


class _Key(httpx.Auth):
    """The key, put on a request as it leaves; no frame of ours and no error holds it."""

    def __init__(self, key: str | Path) -> None:
        self._key = key
        if isinstance(key, str):
            _checked("key", key)

    def __repr__(self) -> str:
        return "_Key(…)"

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        # A file is read each time: whoever rotates the key writes it anew.
        key = self._key if isinstance(self._key, str) else _checked(str(self._key), self._key.read_text().strip())
        request.headers["Authorization"] = f"Bearer {key}"
        yield request


@dataclass(frozen=True, slots=True)
class _Settings:
    """What both clients are made from, and how a call is begun."""

    url: str
    key: _Key
    account: str | None
    timeout: float
    tries: int

    @classmethod
    def read(cls, url: str | None, key: str | Path | None, account: str | None, timeout: float, tries: int) -> Self:
        """Return them, from the environment what is not given. Raises: ValueError with what is missing or wrong."""
        url = url or os.environ.get("GATEWAY_URL", "")
        if not _ADDRESS.fullmatch(url):
            raise ValueError("Give the gateway's address, like https://gateway.internal, as 'base_url' or in GATEWAY_URL.")
        if key is None and "GATEWAY_KEY" not in os.environ and "GATEWAY_KEY_FILE" in os.environ:
            key = Path(os.environ["GATEWAY_KEY_FILE"])
        key = os.environ.get("GATEWAY_KEY") if key is None else key
        if not key:
            raise ValueError("Give the internal key as 'key', text or Path of its file, in GATEWAY_KEY or in GATEWAY_KEY_FILE.")
        if not 0 < timeout <= _TIMEOUT_MS_MAX / 1000:
            raise ValueError(f"timeout is in seconds, more than 0 and at most {_TIMEOUT_MS_MAX // 1000}.")
        if tries < 1:
            raise ValueError("tries counts the first one too: 1 or more.")
        account = None if account is None else _checked("account", account)
        return cls(url.rstrip("/") + _PATH, _Key(key), account, timeout, tries)

    def call(self, fields: Fields, idempotency_key: str | None, traceparent: str | None, now: float) -> _Call:
        """Return a call that was not sent yet. Raises: TypeError or ValueError with the argument at fault."""
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Idempotency-Key": str(uuid4()) if idempotency_key is None else _checked("idempotency_key", idempotency_key),
        }
        if self.account is not None:
            headers["X-Gateway-Account"] = self.account
        if traceparent is not None:
            headers["traceparent"] = _checked("traceparent", traceparent)
        return _Call(_content(fields), headers, now + self.timeout, self.tries)


@dataclass(slots=True)
class _Call:
    """One call over all its tries: what to send next, what an answer means, and whether to try again."""

    content: bytes
    headers: dict[str, str]
    ends_at: float
    """Second of the monotonic clock."""
    tries_max: int
    tries: int = 0
    doubtful: bool = False
    """Whether a try may have been carried out without our knowing."""
    request_id: str = field(default="", init=False)

    def request(self, left: float) -> dict[str, Any]:
        """Return the next try, in httpx's words. `left`: seconds."""
        self.tries += 1
        self.request_id = uuid4().hex
        told = left - min(_WAY_BACK_SECONDS_MAX, left / 10)
        more = {"X-Request-Id": self.request_id, "X-Request-Timeout-Ms": str(max(1, int(told * 1000)))}
        # Half, so that there is time to try elsewhere behind the same name.
        soon = min(_CONNECT_SECONDS_MAX, left / 2)
        timeout = httpx.Timeout(left, connect=soon, pool=left / 2)
        return {"content": self.content, "headers": {**self.headers, **more}, "timeout": timeout}

    def judge(self, answer: _Answer | _Failure) -> Done | GatewayError:
        """Return what a try came to."""
        if isinstance(answer, _Failure):
            if answer.not_sent:
                return self._error(f"The gateway could not be reached: {answer.detail}", "unreachable", retryable=True)
            self.doubtful = True
            return self._error("No whole answer came in time; the call may have been made.", "no_answer", retryable=True)
        said = _object(answer.body)
        if said.get("status") == "success" and answer.status == 200 and isinstance(said.get("request_id"), str):
            replayed = answer.headers.get("idempotency-replayed") == "true"
            return Done(said["request_id"], str(said.get("operation")), str(said.get("message")), replayed)
        if said.get("status") == "error" and isinstance(said.get("error"), str):
            return self._refusal(answer, said)
        return self._stranger(answer)

    def pause(self, error: GatewayError, now: float, chance: float) -> float | None:
        """Return the seconds to wait before the next try; None: it is not worth one, or there is no time for it.

        Anything up to twice as long each time, by chance: those who failed together must not come back together.
        """
        if not error.retryable or self.tries >= self.tries_max:
            return None
        longest = min(_PAUSE_SECONDS_MAX, _PAUSE_SECONDS * 2.0 ** (self.tries - 1))
        seconds = (error.retry_after or 0.0) + longest * chance
        return seconds if now + seconds < self.ends_at else None

    def _refusal(self, answer: _Answer, said: Mapping[str, Any]) -> GatewayError:
        slug = said["error"]
        self.doubtful = self.doubtful or slug in UNKNOWN
        # What the vendor says of the call settles what became of it.
        settled = said.get("origin") == "vendor" and answer.status < 500
        retryable = said.get("retryable") is True
        return self._error(str(said.get("message")), slug, answer=answer, said=said, retryable=retryable, settled=settled)

    def _stranger(self, answer: _Answer) -> GatewayError:
        """Return the error of an answer that is not the gateway's: of a proxy before it, or of something else at its address."""
        if 300 <= answer.status < 400:
            there = answer.headers.get("location", "").partition("?")[0]
            words = f"The gateway's address redirects to {there!r}, which is not followed: it would be given the key. "
            return self._error(words + "Correct 'base_url'.", "redirected", answer=answer, retryable=False)
        kind = answer.headers.get("content-type", "no type").partition(";")[0]
        words = f"HTTP {answer.status} with {kind} is no answer of the gateway: of a proxy, or 'base_url' is wrong."
        # A proxy may have passed the request on before it failed.
        self.doubtful = self.doubtful or answer.status >= 500 or answer.status < 300
        retryable = answer.status in (408, 429) or answer.status >= 500
        return self._error(words, "not_the_gateway", answer=answer, retryable=retryable)

    def _error(
        self,
        message: str,
        slug: str,
        *,
        retryable: bool,
        answer: _Answer | None = None,
        said: Mapping[str, Any] | None = None,
        settled: bool = False,
    ) -> GatewayError:
        said = said or {}
        status = None if answer is None else answer.status
        kind: type[GatewayError] = Refused
        if self.doubtful and not settled:
            kind = Unknown
        elif status == 429:
            kind = RateLimited
        elif retryable:
            kind = Unavailable
        retry_after = None if answer is None else _retry_after(said.get("retry_after"), answer.headers)
        request_id = str(said.get("request_id") or self.request_id)
        # By position: what an exception is made from is what it is pickled by.
        return kind(
            message, slug, status, said.get("code"), retryable, str(said.get("origin", "client")),
            said.get("field"), said.get("policy"), retry_after, request_id, self.tries,
        )  # fmt: skip


class Client:
    """The gateway, for threads: one client serves any number of them. Close it, or use it in a `with` statement.

    - `base_url`: like `https://gateway.internal`; None: GATEWAY_URL.
    - `key`: an internal key or a workload's token; a `Path`: its file, read for each call. None: GATEWAY_KEY, or the file
      GATEWAY_KEY_FILE.
    - `account`: a vendor account, where the service may use several.
    - `timeout`: seconds for a call with all its tries and pauses.
    - `tries`: how often a call is asked for at most.
    - `transport`: for certificate authorities or a proxy of your own; None: httpx's, with what the environment says of both.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        key: str | Path | None = None,
        account: str | None = None,
        timeout: float = 30.0,
        tries: int = 4,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._settings = _Settings.read(base_url, key, account, timeout, tries)
        self._http = httpx.Client(auth=self._settings.key, transport=transport)

    def __repr__(self) -> str:
        return f"Client({self._settings.url.removesuffix(_PATH)!r}, key=…)"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def unset(self, *, idempotency_key: str | None = None, traceparent: str | None = None, **fields: Unpack[Fields]) -> Done:
        """End a masking, or change when it ends; see `Fields`.

        - `idempotency_key`: names the call where more than this one asking belongs to it, as of a job that may be started
          again. None: a new one.
        - `traceparent`: of the W3C's form; leads from the gateway's records to your trace.

        Raises: GatewayError; TypeError or ValueError for an argument that cannot be sent.
        """
        call = self._settings.call(fields, idempotency_key, traceparent, time.monotonic())
        while True:
            came = call.judge(self._send(call))
            if isinstance(came, Done):
                return came
            pause = call.pause(came, time.monotonic(), random.random())  # noqa: S311 - no secret depends on it
            if pause is None:
                raise came
            time.sleep(pause)

    def _send(self, call: _Call) -> _Answer | _Failure:
        request = call.request(max(0.001, call.ends_at - time.monotonic()))
        try:
            with self._http.stream("POST", self._settings.url, **request) as answer:
                body = b""
                for part in answer.iter_bytes():
                    body += part
                    # httpx bounds each wait, not their sum.
                    if len(body) > _ANSWER_BYTES_MAX or time.monotonic() > call.ends_at:
                        return _LATE
                return _Answer(answer.status_code, answer.headers, body)
        except httpx.RequestError as error:
            return _failure(error)


class AsyncClient:
    """The gateway, for asyncio: one client serves any number of tasks of one loop. The arguments are those of `Client`."""

    def __init__(
        self,
        base_url: str | None = None,
        *,
        key: str | Path | None = None,
        account: str | None = None,
        timeout: float = 30.0,
        tries: int = 4,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._settings = _Settings.read(base_url, key, account, timeout, tries)
        self._http = httpx.AsyncClient(auth=self._settings.key, transport=transport)

    def __repr__(self) -> str:
        return f"AsyncClient({self._settings.url.removesuffix(_PATH)!r}, key=…)"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def unset(
        self, *, idempotency_key: str | None = None, traceparent: str | None = None, **fields: Unpack[Fields]
    ) -> Done:
        """End a masking, or change when it ends, as `Client.unset` does.

        Cancelled, it asks no more; what was sent is carried out all the same, and is told under the same `idempotency_key`.
        """
        call = self._settings.call(fields, idempotency_key, traceparent, time.monotonic())
        while True:
            came = call.judge(await self._send(call))
            if isinstance(came, Done):
                return came
            pause = call.pause(came, time.monotonic(), random.random())  # noqa: S311 - no secret depends on it
            if pause is None:
                raise came
            await asyncio.sleep(pause)

    async def _send(self, call: _Call) -> _Answer | _Failure:
        left = max(0.001, call.ends_at - time.monotonic())
        try:
            async with asyncio.timeout(left), self._http.stream("POST", self._settings.url, **call.request(left)) as answer:
                body = b""
                async for part in answer.aiter_bytes():
                    body += part
                    if len(body) > _ANSWER_BYTES_MAX:
                        return _LATE
                return _Answer(answer.status_code, answer.headers, body)
        except TimeoutError:
            return _LATE
        except httpx.RequestError as error:
            return _failure(error)


def _failure(error: httpx.RequestError) -> _Failure:
    return _Failure(isinstance(error, _NOT_SENT), str(error) or type(error).__name__)


def _checked(name: str, value: str) -> str:
    """Return what can be sent in a header. Raises: ValueError without the value, which may be the key."""
    if not _VISIBLE.fullmatch(value):
        raise ValueError(f"{name} must be visible ASCII characters, at least one.")
    return value


def _content(fields: Fields) -> bytes:
    unknown = sorted(fields.keys() - Fields.__annotations__.keys())
    if unknown:
        raise TypeError(f"unset() takes no {unknown[0]!r}; it takes {', '.join(Fields.__annotations__)}.")
    empty = sorted(name for name, value in fields.items() if value is None)
    if empty:
        raise TypeError(f"{empty[0]} is None: give a value, or leave the argument out.")
    sent: dict[str, object] = {name: fields[name] for name in ("m1", "m2", "mask") if name in fields}
    if "expires_in_minutes" in fields and "expires_at" in fields:
        raise ValueError("Give expires_in_minutes or expires_at, not both.")
    if "expires_in_minutes" in fields:
        minutes = fields["expires_in_minutes"]
        if not isinstance(minutes, int) or isinstance(minutes, bool) or minutes < 1:
            raise ValueError("expires_in_minutes must be a whole number, 1 or more; without it the masking ends at once.")
        sent["expiry_duration"] = minutes
    if "expires_at" in fields:
        if not isinstance(fields["expires_at"], datetime) or fields["expires_at"].tzinfo is None:
            raise ValueError("expires_at must be a datetime with its zone, like datetime.now(UTC) + timedelta(hours=1).")
        sent["expiry_time"] = int(fields["expires_at"].timestamp())
    return json.dumps(sent).encode()


def _object(body: bytes) -> Mapping[str, Any]:
    """Return the JSON object of an answer; an empty one where there is none."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _retry_after(told: object, headers: httpx.Headers) -> float | None:
    """Return seconds; of a date, by the answer's own clock. None: not told, or not to be read."""
    if isinstance(told, int):
        return float(max(0, told))
    written = headers.get("retry-after", "").strip()
    if written.isascii() and written.isdigit():
        return float(written[:9])
    try:
        return max(0.0, (parsedate_to_datetime(written) - parsedate_to_datetime(headers.get("date", ""))).total_seconds())
    except (ValueError, TypeError):
        return None
