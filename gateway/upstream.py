"""Sends one request to the one vendor host, and names every way of getting no answer.

The line between "the call was not made" and "whether it acted is not known" is drawn here: nothing that fails before
the connection stands can have reached the vendor, everything after it may have.
"""

from __future__ import annotations

import asyncio
import math
import ssl
import time
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Final

import httpx

from gateway.config import Upstream as Settings
from gateway.errors import Problem, Refusal
from gateway.model import UNSET_PATH, UpstreamAnswer, UpstreamRequest
from gateway.transport import PooledTransport

# Nothing of the caller's request is copied; identity: a compressed answer could grow without bound.
_HEADERS: Final = {
    "Content-Type": "application/json",
    "Accept": "application/json",
    "Accept-Encoding": "identity",
    "User-Agent": "masking-gateway",
}

PROBLEMS: Final[tuple[tuple[type[httpx.TransportError], Problem], ...]] = (
    (httpx.PoolTimeout, Problem.upstream_busy),
    (httpx.ConnectTimeout, Problem.upstream_unreachable),
    (httpx.ConnectError, Problem.upstream_unreachable),
    (httpx.ProxyError, Problem.upstream_unreachable),
    (httpx.UnsupportedProtocol, Problem.upstream_unreachable),
    (httpx.TimeoutException, Problem.upstream_timeout),
    (httpx.TransportError, Problem.upstream_broken),
)
"""The row for each httpx error, the first that fits."""


_TLS_PROBLEMS: Final = {
    **dict.fromkeys((9, 10), Problem.upstream_tls_expired),
    **dict.fromkeys((62, 64), Problem.upstream_tls_wrong_host),
    **dict.fromkeys((2, 18, 19, 20, 21), Problem.upstream_tls_untrusted),
}
"""By OpenSSL's code of what was wrong with a certificate, X509_V_ERR_…; the rest is `upstream_tls_failed`."""
_CONNECTED_BY: Final = 0.9


class HttpUpstream:
    """The vendor, over any httpx transport."""

    def __init__(
        self,
        settings: Settings,
        brand: str,
        transport: httpx.AsyncBaseTransport | None = None,
        traceparent: Callable[[], str] | None = None,
        told: Callable[[int | Problem, float], None] = lambda *_: None,
    ) -> None:
        """Opens nothing. `traceparent` names the span under way, for the vendor; None: it is sent none.

        `told` hears the status of each answer, or why there was none, and how many seconds it took.
        Raises: OSError when the certificate authorities cannot be read.
        """
        self._traceparent = traceparent
        self._told = told
        self._transport = transport or PooledTransport(
            idle_seconds=settings.idle_seconds,
            verify=ssl.create_default_context(cafile=settings.ca_file or None),
        )
        self._url = httpx.URL(brand + UNSET_PATH)
        # Bodies are of few lengths, and a set of headers is dearer than what else makes a request.
        self._headers_of = lru_cache(maxsize=256)(partial(_headers, self._url.netloc.decode()))
        self._answer_bytes_max = settings.answer_bytes_max
        self._total_seconds = settings.total_timeout_ms / 1000
        self._timeouts = {
            "connect": settings.connect_timeout_ms / 1000,
            "read": settings.read_timeout_ms / 1000,
            "write": settings.read_timeout_ms / 1000,
            "pool": settings.pool_timeout_ms / 1000,
        }
        self._extensions = self._extensions_within(self._total_seconds)

    async def forward(self, request: UpstreamRequest, within_seconds: float = math.inf) -> UpstreamAnswer:
        """Return the vendor's answer, read to its end or to the bound; wait for it no longer than that and the settings say.

        Raises: Refusal `upstream_unreachable`, `upstream_tls_…`, `upstream_busy`, `upstream_timeout`, `upstream_broken`.
        """
        # Straight into the transport: the client above it adds cookies, redirects and proxies, none of which we want,
        # and most of the cost of a call.
        outgoing = httpx.Request(
            "POST",
            self._url,
            headers=self._headers(len(request.body)),
            stream=httpx.ByteStream(request.body),
            extensions=self._extensions if within_seconds >= self._total_seconds else self._extensions_within(within_seconds),
        )
        began = time.monotonic()
        try:
            async with asyncio.timeout(min(self._total_seconds, within_seconds)):
                answer = await self._answer(outgoing)
        except TimeoutError:
            raise self._refusal(Problem.upstream_timeout, began) from None
        except httpx.TransportError as error:
            raise self._refusal(_problem(error), began) from None
        self._told(answer.status, time.monotonic() - began)
        return answer

    async def aclose(self) -> None:
        """Close every connection."""
        await self._transport.aclose()

    def _refusal(self, problem: Problem, began: float) -> Refusal:
        self._told(problem, time.monotonic() - began)
        return Refusal(problem)

    def _headers(self, length: int) -> httpx.Headers:
        headers = self._headers_of(length)
        if self._traceparent is None:
            return headers
        return httpx.Headers({**headers, "traceparent": self._traceparent()})

    def _extensions_within(self, seconds: float) -> dict[str, dict[str, float]]:
        """Return time-outs by which connecting ends before the time does: then it is known that the call was not made."""
        timeouts, most = self._timeouts, seconds * _CONNECTED_BY
        return {"timeout": {**timeouts, "connect": min(timeouts["connect"], most), "pool": min(timeouts["pool"], most)}}

    async def _answer(self, outgoing: httpx.Request) -> UpstreamAnswer:
        answer = await self._transport.handle_async_request(outgoing)
        stream = answer.stream
        assert isinstance(stream, httpx.AsyncByteStream)
        body = b""
        try:
            async for chunk in stream:
                body += chunk
                if len(body) > self._answer_bytes_max:
                    break
        finally:
            await stream.aclose()
        complete = len(body) <= self._answer_bytes_max
        return UpstreamAnswer(answer.status_code, body, answer.headers.get("retry-after"), complete)


def _headers(host: str, length: int) -> httpx.Headers:
    return httpx.Headers({**_HEADERS, "Host": host, "Content-Length": str(length)})


def _problem(error: httpx.TransportError) -> Problem:
    # TLS may break after the request was sent too; then nobody knows.
    cause: BaseException | None = error if isinstance(error, httpx.ConnectError) else None
    while cause is not None:
        code = getattr(cause, "verify_code", None)
        if code is not None:
            return _TLS_PROBLEMS.get(code, Problem.upstream_tls_failed)
        # aiohttp's own error is one of certificates too, and has no code; its cause does.
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLCertVerificationError):
            return Problem.upstream_tls_failed
        cause = cause.__cause__ or cause.__context__
    return next(problem for kind, problem in PROBLEMS if isinstance(error, kind))
