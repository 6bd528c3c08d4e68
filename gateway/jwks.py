"""Where the issuers' public keys come from: a file that is read again when it changes, or an address that is asked again.

What was read last stays in use while it cannot be read again, up to a bound. A key that its issuer no longer publishes is
gone with the next reading, and all are gone when it publishes none.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import random
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from gateway.tokens import KeySet, NoUsableKey, read_key_set

_BYTES_MAX: Final = 1024 * 1024
_LOOK_EVERY_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = 10.0
"""Longest pause after an address failed: who starts together with its issuer need not wait for a whole `max_age_seconds`."""
_ASK_AGAIN_SECONDS: Final = 10.0
"""Shortest pause between readings that unknown keys bring about: anybody can make up the name of a key."""


@dataclass(frozen=True, slots=True)
class JwksSettings:
    """Where one issuer's keys are, and for how long they may be used. Either `file` or `url`; an empty text is none."""

    file: str
    url: str
    """`https://`; `http://` only for this machine itself."""
    ca_file: str
    """PEM of the authorities the address is trusted by; empty: the system's."""
    bearer_file: str
    """Of the token that the address wants; read each time, since platforms renew it."""
    max_age_seconds: int
    """The keys are read again after this time, from an address up to a fifth of it earlier; a changed file within a second."""
    stale_seconds_max: int
    """Keys older than this are not used; to be longer than `max_age_seconds`."""
    timeout_seconds: float
    """For one reading of an address, from its first byte to its last."""


class _Unreadable(Exception):
    """A key set cannot be had. The message is a short reason, without contents."""


_Stamp = tuple[int, int, int]
_NONE: Final[Mapping[str, KeySet]] = {}


@dataclass(slots=True)
class _Kept:
    key_set: KeySet | None = None
    read_at: float = float("-inf")
    """When the last good reading began."""
    asked_at: float = float("-inf")
    """When an unknown key last brought about a reading."""
    stamp: _Stamp | None = None
    why: str = "not read yet"
    """Why the last reading failed; empty when it did not."""
    reading: asyncio.Task[bool] | None = None


class Jwks:
    """The key sets of every issuer."""

    def __init__(
        self,
        sources: Mapping[str, JwksSettings],
        changed: Callable[[str, bool, str], None],
        now: Callable[[], float] = time.monotonic,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Open nothing yet.

        `changed(name, good, why)` is told of every new key set, of recovery, and once of each reason why reading fails.
        `now`: seconds that only rise. Raises: ValueError for a source that is not one, or is not safe.
        """
        for name, source in sources.items():
            _check(name, source)
        self._sources = sources
        self._changed = changed
        self._now = now
        self._transport = transport
        self._kept = {name: _Kept() for name in sources}
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def names(self) -> tuple[str, ...]:
        """The issuers."""
        return tuple(self._sources)

    async def open(self) -> None:
        """Read every key set once, and go on reading. What cannot be read is told, not raised."""
        await asyncio.gather(*(self._read_shared(name) for name in self._sources))
        self._tasks = [asyncio.create_task(self._read_for_ever(name)) for name in self._sources]

    async def aclose(self) -> None:
        """Stop reading; who waits for a refresh gets False."""
        tasks = [*self._tasks, *(kept.reading for kept in self._kept.values() if kept.reading is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def current(self, name: str) -> KeySet | None:
        """Return an issuer's keys; None when there never were any, or they are too old. The same object until they change."""
        kept = self._kept[name]
        fresh = self._now() - kept.read_at <= self._sources[name].stale_seconds_max
        return kept.key_set if fresh else None

    def key_sets(self) -> Mapping[str, KeySet]:
        """Return the keys that may be used now, by issuer."""
        if not self._sources:
            return _NONE
        return {name: key_set for name in self._sources if (key_set := self.current(name)) is not None}

    async def refresh(self, name: str) -> bool:
        """Read a key set again, at most every ten seconds and once for all who wait; say whether there is another now."""
        kept = self._kept[name]
        if kept.reading is None:
            if self._now() - kept.asked_at < _ASK_AGAIN_SECONDS:
                return False
            kept.asked_at = self._now()
        return await self._read_shared(name)

    def problems(self) -> dict[str, str]:
        """Return why, for each issuer whose keys cannot be used."""
        return {name: kept.why or "stale" for name, kept in self._kept.items() if self.current(name) is None}

    async def _read_for_ever(self, name: str) -> None:
        kept, source = self._kept[name], self._sources[name]
        while True:
            await asyncio.sleep(self._pause(name))
            # A failing file is tried at every look: what was put back has the stamp of before. And a good one is read again in
            # its turn: two writes within one tick of the file system's clock have the same stamp.
            old = self._now() - kept.read_at >= source.max_age_seconds
            if source.url or old or kept.why or _stamp(source.file) != kept.stamp:
                await self._read_shared(name)

    def _pause(self, name: str) -> float:
        source = self._sources[name]
        if not source.url:
            return _LOOK_EVERY_SECONDS
        seconds = min(source.max_age_seconds, _RETRY_SECONDS) if self._kept[name].why else source.max_age_seconds
        # Jitter: processes that started together need not ask together.
        return max(seconds, 1) * random.uniform(0.8, 1.0)  # noqa: S311 - no secret

    async def _read_shared(self, name: str) -> bool:
        """Join the reading that is under way, or begin one: no two at once, so that no old answer overtakes a new one."""
        kept = self._kept[name]
        if kept.reading is None:
            kept.reading = asyncio.create_task(self._read(name))
            kept.reading.add_done_callback(lambda _: setattr(kept, "reading", None))
        task = kept.reading
        # Not awaited itself: a caller who hangs up would cancel it for all.
        await asyncio.wait([task])
        return not task.cancelled() and task.result()

    async def _read(self, name: str) -> bool:
        kept, source = self._kept[name], self._sources[name]
        began, stamp = self._now(), None if source.url else _stamp(source.file)
        try:
            body = await (self._fetched(source) if source.url else asyncio.to_thread(_from_file, source.file))
            key_set = await asyncio.to_thread(_parsed, body)
        except NoUsableKey as error:
            # Not an outage: the issuer says that no key is good any more.
            kept.key_set = None
            return self._failed(name, str(error))
        except _Unreadable as error:
            return self._failed(name, str(error))
        except Exception as error:  # Whatever it is, it is tried again: a task that died would let the keys grow stale.
            return self._failed(name, type(error).__name__)
        new = key_set != kept.key_set
        told = new or bool(kept.why)
        kept.read_at, kept.stamp, kept.why = began, stamp, ""
        if new:
            kept.key_set = key_set
        if told:
            self._changed(name, True, "")
        return new

    def _failed(self, name: str, why: str) -> bool:
        kept = self._kept[name]
        if kept.why != why:
            kept.why = why
            self._changed(name, False, why)
        return False

    async def _fetched(self, source: JwksSettings) -> bytes:
        # Uncompressed, and as it comes: a few kilobytes of gzip could be gigabytes.
        headers = {"Accept": "application/jwk-set+json, application/json", "Accept-Encoding": "identity"}
        if source.bearer_file:
            token = await asyncio.to_thread(Path(source.bearer_file).read_text, encoding="utf-8")
            headers["Authorization"] = f"Bearer {token.strip()}"
        # Made anew each time: the authorities are renewed as well.
        trusted = await asyncio.to_thread(_trusted, source)
        body = bytearray()
        async with (
            asyncio.timeout(source.timeout_seconds),
            httpx.AsyncClient(
                verify=trusted,
                trust_env=False,
                follow_redirects=False,
                timeout=source.timeout_seconds,
                transport=self._transport,
            ) as client,
            client.stream("GET", source.url, headers=headers) as answer,
        ):
            if answer.status_code != httpx.codes.OK:
                raise _Unreadable(f"HTTP {answer.status_code}")
            async for chunk in answer.aiter_raw():
                body += chunk
                if len(body) > _BYTES_MAX:
                    raise _Unreadable("longer than 1 MiB")
        return bytes(body)


def _check(name: str, source: JwksSettings) -> None:
    if bool(source.file) == bool(source.url):
        raise ValueError(f"issuer {name}: give the keys either a file or a url")
    if not source.url:
        return
    try:
        url = httpx.URL(source.url)
    except httpx.InvalidURL:
        raise ValueError(f"issuer {name}: the url of the keys is not one") from None
    if not url.host or not (url.scheme == "https" or (url.scheme == "http" and _is_loopback(url.host))):
        raise ValueError(f"issuer {name}: the url of the keys must begin with https://")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _trusted(source: JwksSettings) -> ssl.SSLContext:
    if not source.url.lower().startswith("https:"):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # Trusts nobody, and costs nothing.
    return ssl.create_default_context(cafile=source.ca_file or None)


def _stamp(path: str) -> _Stamp | None:
    # The inode too: Kubernetes and careful people replace the file behind a link, and the time may be the same.
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_ino, status.st_size)


def _from_file(path: str) -> bytes:
    with Path(path).open("rb") as file:
        body = file.read(_BYTES_MAX + 1)
    if len(body) > _BYTES_MAX:
        raise _Unreadable("longer than 1 MiB")
    return body


def _parsed(body: bytes) -> KeySet:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise _Unreadable("is not JSON") from None
    try:
        return read_key_set(document)
    except NoUsableKey:
        raise
    except ValueError as error:
        raise _Unreadable(str(error)) from None
