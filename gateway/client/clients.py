"""The two clients: they read key and clock, send, wait and raise; `call` says what."""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, Unpack
from uuid import uuid4

import httpx

from gateway.client.call import LATE, TIMEOUT_SECONDS_MAX, Answer, Call, Failure, Fields, checked, content_of
from gateway.client.errors import Done

_PATH: Final = "/api/v2/Masking/unset"
_ADDRESS: Final = re.compile(r"https?://[^\s/?#@]+(/[^\s?#]*)?")
_ANSWER_BYTES_MAX: Final = 65_536
_NOT_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)


class _Key(httpx.Auth):
    """The key, put on a request as it leaves; no frame of ours and no error holds it."""

    def __init__(self, key: str | Path) -> None:
        self._key = key
        if isinstance(key, str):
            checked("key", key)

    def __repr__(self) -> str:
        return "_Key(…)"

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        # A file is read each time: whoever rotates the key writes it anew.
        key = self._key if isinstance(self._key, str) else checked(str(self._key), self._key.read_text().strip())
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
        if not 0 < timeout <= TIMEOUT_SECONDS_MAX:
            raise ValueError(f"timeout is in seconds, more than 0 and at most {TIMEOUT_SECONDS_MAX}.")
        if tries < 1:
            raise ValueError("tries counts the first one too: 1 or more.")
        account = None if account is None else checked("account", account)
        return cls(url.rstrip("/") + _PATH, _Key(key), account, timeout, tries)

    def call(self, fields: Fields, idempotency_key: str | None, traceparent: str | None, now: float) -> Call:
        """Return a call that was not sent yet. Raises: TypeError or ValueError with the argument at fault."""
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
        }
        if self.account is not None:
            headers["X-Gateway-Account"] = self.account
        if traceparent is not None:
            headers["traceparent"] = checked("traceparent", traceparent)
        key = str(uuid4()) if idempotency_key is None else checked("idempotency_key", idempotency_key)
        # Minutes from now are counted anew each time it is made.
        spare = idempotency_key is None and "expires_in_minutes" not in fields
        return Call(content_of(fields), headers, now + self.timeout, self.tries, key, spare=spare)


class Client:
    """The gateway, for threads: one client serves any number of them. Close it, or use it in a `with` statement.

    - `base_url`: like `https://gateway.internal`; None: GATEWAY_URL.
    - `key`: an internal key or a workload's token; a `Path`: its file, read for each call. None: GATEWAY_KEY, or the file
      GATEWAY_KEY_FILE.
    - `account`: a vendor account, where the service may use several.
    - `timeout`: seconds for a call with all its tries and pauses. An answer that stops in the middle may take twice as long
      here, not in `AsyncClient`.
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

    def _send(self, call: Call) -> Answer | Failure:
        try:
            with self._http.stream("POST", self._settings.url, **_next(call)) as answer:
                body = b""
                for part in answer.iter_bytes():
                    body += part
                    # httpx bounds each wait, not their sum.
                    if len(body) > _ANSWER_BYTES_MAX or time.monotonic() > call.ends_at:
                        return LATE
                return Answer(answer.status_code, answer.headers, body)
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

    async def _send(self, call: Call) -> Answer | Failure:
        sent = _next(call)
        try:
            async with asyncio.timeout(sent["timeout"].read), self._http.stream("POST", self._settings.url, **sent) as answer:
                body = b""
                async for part in answer.aiter_bytes():
                    body += part
                    if len(body) > _ANSWER_BYTES_MAX:
                        return LATE
                return Answer(answer.status_code, answer.headers, body)
        except TimeoutError:
            return LATE
        except httpx.RequestError as error:
            return _failure(error)


def _next(call: Call) -> dict[str, Any]:
    """Return the next try in httpx's words."""
    request = call.request(uuid4().hex, max(0.001, call.ends_at - time.monotonic()))
    timeout = httpx.Timeout(request.seconds, connect=request.connect_seconds, pool=request.connect_seconds)
    return {"content": request.content, "headers": request.headers, "timeout": timeout}


def _failure(error: httpx.RequestError) -> Failure:
    return Failure(isinstance(error, _NOT_SENT), str(error) or type(error).__name__)
