"""Opens redis-py's client for a single server, Sentinel or Cluster, by the settings alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import hiredis
from redis._parsers.hiredis import NOT_ENOUGH_DATA
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, RedisError

from gateway.config import Redis as Settings
from gateway.errors import Problem, Refusal
from gateway.model import Secret

FAULTS: Final = (RedisClusterException, RedisError, OSError, TimeoutError)
"""What a Redis that is away raises. redis-py raises the first where it finds no node of a cluster to ask."""
Command = tuple[Any, ...]
"""Its name and its words: text, bytes or numbers."""


class _Direct(AbstractConnection):
    """A connection that sends commands together and reads their answers without redis-py's way there and back.

    That way costs more than everything else a batch costs this process; connecting, proving who we are and TLS stay
    redis-py's. What redis-py does to answers by the name of their command is left out: they are as Redis gave them.
    """

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Return the answers, an error as the exception it is. Raises: RedisError, OSError."""
        # What was left unread, or the other side's goodbye.
        if self.is_connected and await self.can_read():
            await self.disconnect(nowait=True)
        await self.connect()  # type: ignore[no-untyped-call]  # redis-py has no types for it
        await self.send_packed_command([hiredis.pack_command(command) for command in commands], check_health=False)
        answers: list[Any] = []
        parser: Any = self._parser
        while len(answers) < len(commands):
            answer = parser._reader.gets()  # noqa: SLF001 - a subclass reads what its parser reads
            if answer is NOT_ENOUGH_DATA:
                await parser.read_from_socket()
            else:
                answers.append(answer)
        return answers


@dataclass(slots=True)
class Connection:
    """A client, the one connection of it that commands go by, and how to make it forget its connections."""

    client: Any
    single: Redis | None
    """The client where it speaks to one server at a time; None for a cluster."""
    _own: Any = None

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Return the answers to commands that are sent together, one after the other. Raises: RedisError, OSError.

        To be called again only when it has returned.
        """
        if self.single is None:
            pipeline = self.client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            answers: list[Any] = await pipeline.execute(raise_on_error=False)
            return answers
        if self._own is None:
            self._own = await self.single.connection_pool.get_connection()  # type: ignore[no-untyped-call]  # the same
        try:
            found: list[Any] = await self._own.exchange(commands)
        except BaseException:
            # Answers that are still to come would be taken for those to the next commands.
            await self._own.disconnect(nowait=True)
            raise
        return found

    async def reconnect(self) -> None:
        """Drop every connection: one that timed out may still get its answer, and after a failover another is master."""
        if self.single is not None:
            await self.single.connection_pool.disconnect()
        else:
            await self.client.aclose()  # A cluster's client opens itself again at its next command.

    async def aclose(self) -> None:
        """Close the client."""
        if self._own is not None and self.single is not None:
            await self.single.connection_pool.release(self._own)
            self._own = None
        await self.client.aclose()


def connect(settings: Settings, password: Secret | None, *, read_seconds: float | None) -> Connection:
    """Return a client that has opened nothing yet; `read_seconds` bounds one answer, None where the caller does.

    redis-py's defaults wait 5 s and try ten times; a try after a time-out can write one record twice. Here a command
    is sent once and waited for once.
    """
    seconds = settings.timeout_ms / 1000
    common: dict[str, Any] = {
        "socket_timeout": read_seconds,
        "socket_connect_timeout": seconds,
        "retry": Retry(NoBackoff(), 0),
        "username": settings.username or None,
        "password": password.reveal() if password else None,
    }
    tls: dict[str, Any] = {}
    if settings.url.startswith("rediss://") and settings.ca_file:
        tls["ssl_ca_certs"] = settings.ca_file
    if settings.cluster:
        cluster = RedisCluster.from_url(settings.url, **common, **tls, cluster_error_retry_attempts=1)
        return Connection(cluster, None)
    if settings.sentinels:
        hosts = [_host_and_port(text) for text in settings.sentinels]
        secure = settings.url.startswith("rediss://")
        if secure:
            tls["ssl"] = True
        sentinel = Sentinel(  # type: ignore[no-untyped-call]  # redis-py has no types for it
            hosts, sentinel_kwargs={"socket_timeout": seconds, "socket_connect_timeout": seconds}, **common, **tls
        )
        master: Redis = sentinel.master_for(settings.sentinel_service, redis_class=Redis, db=_database(settings.url))
        return Connection(master, _direct(master))
    single: Redis = Redis.from_url(settings.url, **common, **tls)
    return Connection(single, _direct(single))


def _direct(client: Redis) -> Redis:
    pool = client.connection_pool
    pool.connection_class = type("DirectConnection", (_Direct, pool.connection_class), {})
    return client


@contextmanager
def refusing() -> Iterator[None]:
    """Raise Refusal `ledger_unavailable` in place of redis-py's errors."""
    try:
        yield
    except FAULTS as error:
        # Its text may hold the address and the user.
        raise Refusal(Problem.ledger_unavailable, error=type(error).__name__) from None


def pairs(raw: Any) -> list[tuple[bytes, bytes]]:
    """Return the pairs of an HGETALL, whichever protocol version answered it."""
    if isinstance(raw, dict):
        return list(raw.items())
    return list(zip(raw[::2], raw[1::2], strict=True))


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def _database(url: str) -> int:
    path = urlsplit(url).path.lstrip("/")
    return int(path) if path.isdigit() else 0
