"""An httpx transport over aiohttp's connection pool, whose cost does not grow with the number of idle connections.

httpx's own pool looks at every idle connection on each request. The published bridge between the two libraries calls
a connection that broke after sending a connect time-out; for us that is the difference between "was not made" and
"may have been made", so the errors are mapped here. No proxy, cookie or redirect is ever taken up.
"""

from __future__ import annotations

import asyncio
import select
import ssl
from collections.abc import AsyncIterator
from functools import lru_cache
from typing import Any, Final
from weakref import WeakSet

import aiohttp
import httpx
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from multidict import CIMultiDict
from yarl import URL

# Most specific first: the first that fits is raised.
_ERRORS: Final[tuple[tuple[type[Exception], type[httpx.TransportError]], ...]] = (
    (aiohttp.ConnectionTimeoutError, httpx.ConnectTimeout),
    (aiohttp.ServerTimeoutError, httpx.ReadTimeout),
    (aiohttp.ClientConnectorError, httpx.ConnectError),
    (aiohttp.ClientSSLError, httpx.ConnectError),
    (aiohttp.ServerDisconnectedError, httpx.RemoteProtocolError),
    (aiohttp.ClientOSError, httpx.ReadError),
    (aiohttp.ClientPayloadError, httpx.RemoteProtocolError),
    (aiohttp.ClientError, httpx.RemoteProtocolError),
    (OSError, httpx.ReadError),
)


class PooledTransport(httpx.AsyncBaseTransport):
    """Sends requests to one host over kept-alive connections."""

    def __init__(self, *, idle_seconds: float, verify: ssl.SSLContext | bool = True) -> None:
        """Opens nothing before the first request, and then as many connections as there are requests at once."""
        self._verify = verify
        self._idle_seconds = idle_seconds
        self._session: aiohttp.ClientSession | None = None
        self._urls: dict[tuple[str, bytes, int | None, bytes], URL] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; time-outs come from its `timeout` extension. Raises: httpx.TransportError."""
        timeout = request.extensions["timeout"]
        try:
            answer = await self._open().request(
                request.method,
                self._url(request.url),
                data=await _content(request),
                headers=_translated_headers(tuple(request.headers.raw)),
                allow_redirects=False,
                timeout=_time_out(timeout["connect"], timeout["read"]),
            )
        except BaseException as error:
            raise _translated(error, request) from error
        return httpx.Response(answer.status, headers=list(answer.raw_headers), stream=_Stream(answer, request), request=request)

    async def aclose(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = _Connector(limit=0, ssl=self._verify, keepalive_timeout=self._idle_seconds)
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
            )
        return self._session

    def _url(self, url: httpx.URL) -> URL:
        # httpx writes an address out whenever it is hashed or compared.
        parts = url.scheme, url.raw_host, url.port, url.raw_path
        if parts not in self._urls:
            self._urls[parts] = URL(str(url))
        return self._urls[parts]


class _Connector(aiohttp.TCPConnector):
    """A pool that gives no connection out again on which something came since its last answer.

    It would be read as the next call's answer; mostly it is the vendor's goodbye, and a POST sent after it is lost.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._used: WeakSet[ResponseHandler] = WeakSet()

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Any],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's name
    ) -> Connection:
        """Return a new connection, or one that was used and is clean."""
        while True:
            connection = await super().connect(req, traces, timeout)
            protocol = connection.protocol
            assert protocol is not None
            if protocol not in self._used:
                self._used.add(protocol)
                return connection
            if not protocol.should_close and not _something_came(connection.transport):
                return connection
            connection.close()


def _something_came(transport: asyncio.Transport | None) -> bool:
    """Say whether there is something to read that the loop has not read yet; 1.3 µs."""
    if transport is None:
        return True
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(poll.poll(0))


class _Stream(httpx.AsyncByteStream):
    """The body of one answer; closing it before its end closes the connection."""

    def __init__(self, answer: aiohttp.ClientResponse, request: httpx.Request) -> None:
        self._answer = answer
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while chunk := await self._answer.content.readany():
                yield chunk
        except (aiohttp.ClientError, OSError) as error:
            raise _translated(error, self._request) from error

    async def aclose(self) -> None:
        if self._answer.content.at_eof():
            self._answer.release()
        else:
            self._answer.close()


async def _content(request: httpx.Request) -> bytes:
    stream = request.stream
    if isinstance(stream, httpx.ByteStream):
        (content,) = stream
        return content
    return await request.aread()


# A caller sends the same ones with nearly every request.
@lru_cache(maxsize=256)
def _translated_headers(raw: tuple[tuple[bytes, bytes], ...]) -> CIMultiDict[str]:
    return CIMultiDict((name.decode("latin-1"), value.decode("latin-1")) for name, value in raw)


@lru_cache(maxsize=8)
def _time_out(connect: float, read: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, sock_connect=connect, sock_read=read)


def _translated(error: BaseException, request: httpx.Request) -> BaseException:
    """Return the httpx error for one of aiohttp's, without its text, which holds addresses; others unchanged."""
    for theirs, ours in _ERRORS:
        if isinstance(error, theirs):
            return ours(type(error).__name__, request=request)
    return error
