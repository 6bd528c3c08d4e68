"""Commands issued in one turn of the loop share one pipeline on one connection, and one breaker.

One round trip for many callers costs a third of the CPU of one each, and keeps records in the order they were made.
A Redis that refuses, stalls or lags costs one bounded time-out; then the breaker answers at once until it is time to
try again. Nothing is sent twice: a command that timed out may have been carried out.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

from redis.exceptions import NoScriptError, RedisError, ResponseError

Command = tuple[Any, ...]

_BATCH_MAX: Final = 256
_WAITING_MAX: Final = 20_000
_PAUSE_FIRST_SECONDS: Final = 0.25
_PAUSE_MAX_SECONDS: Final = 5.0
# redis-py has no class for these; the server works, but cannot keep anything now.
_UNABLE: Final = ("MISCONF", "NOREPLICAS", "BUSY ")


class LedgerDown(Exception):
    """Redis did not answer in time, or cannot keep what it is given. The message is the kind of fault."""


class Client(Protocol):
    """What is asked of redis-py, the same for a single server, Sentinel and Cluster."""

    def pipeline(self, transaction: bool = False) -> Any:
        """Start collecting commands."""


class Batch:
    """Sends commands to Redis in order, together, with bounded time."""

    def __init__(
        self,
        client: Client,
        timeout_seconds: float,
        reconnect: Callable[[], Any],
        changed: Callable[[bool, str], None],
        now: Callable[[], float],
    ) -> None:
        """`changed(up, why)` is told when Redis goes away and comes back; `reconnect` drops all connections."""
        self._client = client
        self._timeout_seconds = timeout_seconds
        self._reconnect = reconnect
        self._changed = changed
        self._now = now
        self._waiting: deque[tuple[Command, asyncio.Future[Any]]] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._failures = 0
        self._closed_until = 0.0

    @property
    def down(self) -> bool:
        """Whether the breaker answers in Redis' place now."""
        return self._now() < self._closed_until

    def submit(self, *command: Any) -> asyncio.Future[Any]:
        """Return a future of the command's result; it fails with LedgerDown, or ResponseError for a bad command."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.down or len(self._waiting) >= _WAITING_MAX:
            future.set_exception(LedgerDown("breaker" if self.down else "overload"))
            return future
        self._waiting.append((command, future))
        if self._worker is None:
            self._worker = asyncio.ensure_future(self._work())
        return future

    async def drain(self) -> None:
        """Wait until everything submitted so far is answered."""
        while self._worker is not None:
            await asyncio.shield(self._worker)

    async def _work(self) -> None:
        try:
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _BATCH_MAX))]
                await self._exchange(batch)
        finally:
            self._worker = None

    async def _exchange(self, batch: list[tuple[Command, asyncio.Future[Any]]]) -> None:
        pipeline = self._client.pipeline(transaction=False)
        for command, _ in batch:
            pipeline.execute_command(*command)
        try:
            async with _patient(self._timeout_seconds):
                results = await pipeline.execute(raise_on_error=False)
        except (RedisError, OSError, TimeoutError) as error:
            await self._lost(type(error).__name__, batch)
            return
        except BaseException:
            await self._lost("cancelled", batch)
            raise
        self._answer(batch, results)
        unable = next((result for result in results if _unable(result)), None)
        if unable is not None:
            await self._lost(type(unable).__name__, [])
        elif self._failures:
            self._failures = 0
            self._changed(True, "")

    def _answer(self, batch: list[tuple[Command, asyncio.Future[Any]]], results: list[Any]) -> None:
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if _unable(result):
                future.set_exception(LedgerDown(type(result).__name__))
            elif isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

    async def _lost(self, why: str, batch: list[tuple[Command, asyncio.Future[Any]]]) -> None:
        """Open the breaker and fail all who wait: behind a Redis that is away there is nothing to wait for."""
        self._failures += 1
        pause = min(_PAUSE_FIRST_SECONDS * 2 ** (self._failures - 1), _PAUSE_MAX_SECONDS)
        # Jitter: replicas that lost Redis together must not come back together.
        self._closed_until = self._now() + pause * random.uniform(0.75, 1.25)  # noqa: S311 - no secret
        for _, future in [*batch, *self._waiting]:
            if not future.done():
                future.set_exception(LedgerDown(why))
        self._waiting.clear()
        if self._failures == 1:
            self._changed(False, why)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._reconnect()
        except (RedisError, OSError, TimeoutError):
            pass  # It is gone already; the next command opens a new one.


@asynccontextmanager
async def _patient(seconds: float) -> AsyncIterator[None]:
    """Bound a wait, in two steps: a loop that is late itself first reads what has long arrived.

    Timers run before sockets are read, so with one step a busy moment of ours would be taken for an outage of Redis.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as bound:
        first = loop.call_later(seconds * 0.8, lambda: bound.reschedule(loop.time() + seconds * 0.2))
        try:
            yield
        finally:
            first.cancel()


def _unable(result: Any) -> bool:
    if type(result) is ResponseError:
        return str(result).startswith(_UNABLE)
    return isinstance(result, RedisError) and not isinstance(result, NoScriptError)
