"""Where the issuers' public keys come from: a file that is read again when it changes, or an address that is asked again.

What was read last stays in use while it cannot be read, up to a bound. A key that its issuer no longer publishes is gone
with the next reading.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from gateway.tokens import KeySet, read_key_set

_BYTES_MAX: Final = 1024 * 1024
_LOOK_EVERY_SECONDS: Final = 1.0
_ASK_AGAIN_SECONDS: Final = 10.0
"""Shortest pause between readings that unknown keys bring about: anybody can make up the name of a key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JwksSettings:
    """Where one issuer's keys are, and for how long they may be used. Empty texts: none."""

    file: str
    url: str
    ca_file: str
    bearer_file: str
    """Of the token that the address wants; read each time, since platforms renew it."""
    max_age_seconds: float
    stale_seconds_max: float
    timeout_seconds: float


class _Unreadable(Exception):
    """A key set cannot be had. The message is the kind of fault."""


@dataclass(slots=True)
class _Kept:
    key_set: KeySet | None = None
    document: Any = None
    read_at: float = float("-inf")
    asked_at: float = float("-inf")
    stamp: tuple[int, int] = (0, 0)
    why: str = ""
    reading: asyncio.Task[bool] | None = None


class Jwks:
    """The key sets of every issuer."""

    def __init__(
        self,
        sources: Mapping[str, JwksSettings],
        changed: Callable[[str, bool, str], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Opens nothing. `changed(name, good, why)` is told when an issuer's keys are read anew, or can no longer be."""
        self._sources = sources
        self._changed = changed
        self._now = now
        self._kept = {name: _Kept() for name in sources}
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def names(self) -> tuple[str, ...]:
        """The issuers."""
        return tuple(self._sources)

    async def open(self) -> None:
        """Read every key set once, and go on reading."""
        await asyncio.gather(*(self._read(name) for name in self._sources))
        self._tasks = [asyncio.create_task(self._read_for_ever(name)) for name in self._sources]

    async def aclose(self) -> None:
        """Stop reading."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def key_sets(self) -> Mapping[str, KeySet]:
        """Return the key sets that may be used now, by issuer."""
        return {name: kept.key_set for name, kept in self._kept.items() if kept.key_set is not None and not self._stale(name)}

    def problems(self) -> Mapping[str, str]:
        """Return the kind of fault of each issuer whose keys may not be used."""
        return {name: kept.why or "stale" for name, kept in self._kept.items() if kept.key_set is None or self._stale(name)}

    async def refresh(self, name: str) -> bool:
        """Read a key set again, at most every ten seconds and once for all who wait; say whether it changed."""
        kept = self._kept[name]
        if kept.reading is None:
            if self._now() - kept.asked_at < _ASK_AGAIN_SECONDS:
                return False
            kept.asked_at = self._now()
            kept.reading = asyncio.create_task(self._read(name))
            kept.reading.add_done_callback(lambda _: setattr(kept, "reading", None))
        changed: bool = await asyncio.shield(kept.reading)
        return changed

    def _stale(self, name: str) -> bool:
        return self._now() - self._kept[name].read_at > self._sources[name].stale_seconds_max

    async def _read_for_ever(self, name: str) -> None:
        source = self._sources[name]
        while True:
            # Jitter: processes that started together need not ask together.
            await asyncio.sleep(source.max_age_seconds * random.uniform(0.8, 1.0) if source.url else _LOOK_EVERY_SECONDS)  # noqa: S311
            if source.url or self._stamp(name) != self._kept[name].stamp:
                await self._read(name)
            elif not self._kept[name].why:
                self._kept[name].read_at = self._now()

    async def _read(self, name: str) -> bool:
        """Read one key set; say whether it changed."""
        kept, source = self._kept[name], self._sources[name]
        stamp = self._stamp(name)
        try:
            document = await (self._fetched(source) if source.url else asyncio.to_thread(_from_file, source.file))
            key_set = read_key_set(document)
        except (_Unreadable, ValueError) as error:
            if kept.why != str(error):
                kept.why = str(error)
                self._changed(name, False, kept.why)
            return False
        kept.read_at, kept.stamp = self._now(), stamp
        new = bool(document != kept.document)
        if new or kept.why:
            kept.key_set, kept.document, kept.why = key_set, document, ""
            self._changed(name, True, "")
        return new

    async def _fetched(self, source: JwksSettings) -> Any:
        headers = {"Accept": "application/jwk-set+json, application/json"}
        try:
            if source.bearer_file:
                token = (await asyncio.to_thread(Path(source.bearer_file).read_text)).strip()
                headers["Authorization"] = f"Bearer {token}"
            verify = ssl.create_default_context(cafile=source.ca_file or None)
            async with (
                asyncio.timeout(source.timeout_seconds),
                httpx.AsyncClient(verify=verify, trust_env=False, timeout=source.timeout_seconds) as client,
                client.stream("GET", source.url, headers=headers) as answer,
            ):
                if answer.status_code != httpx.codes.OK:
                    raise _Unreadable(f"HTTP {answer.status_code}")
                body = b""
                async for chunk in answer.aiter_bytes():
                    body += chunk
                    if len(body) > _BYTES_MAX:
                        raise _Unreadable("longer than 1 MiB")
        except (httpx.HTTPError, OSError, TimeoutError, UnicodeDecodeError) as error:
            raise _Unreadable(type(error).__name__) from None
        return _parsed(body)

    def _stamp(self, name: str) -> tuple[int, int]:
        source = self._sources[name]
        try:
            status = Path(source.file).stat()
        except OSError:
            return (0, 0)
        return (status.st_mtime_ns, status.st_ino)


def _from_file(path: str) -> Any:
    try:
        return _parsed(Path(path).read_bytes())
    except OSError as error:
        raise _Unreadable(error.strerror or type(error).__name__) from None


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise _Unreadable("is not JSON") from None
