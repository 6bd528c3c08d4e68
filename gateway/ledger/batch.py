"""Commands issued in one turn of the loop share one pipeline on one connection, and one breaker.

One round trip for many callers costs a third of the CPU of one each, and keeps records in the order they were made.
A Redis that refuses, stalls or lags costs one bounded time-out; then the breaker answers at once, until a write of its
own has shown that Redis is back: no caller waits for that. Nothing is sent twice: a command that timed out may have been
carried out.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from redis.exceptions import NoScriptError, RedisError, ResponseError, TryAgainError

from gateway.durations import Durations
from gateway.ledger.connect import FAULTS, Command

_BATCH_MAX: Final = 256
_WAITING_MAX: Final = 20_000
_PAUSE_FIRST_SECONDS: Final = 0.25
_PAUSE_MAX_SECONDS: Final = 5.0
_TRY_AGAIN_SECONDS: Final = 0.01
_UNHURRIED_SECONDS: Final = 0.005
"""How long what nobody waits for waits for something that somebody does, to go with it."""
ROUND_TRIPS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
"""Seconds by which the round trips that were answered are told apart."""
# redis-py has no class for these; the server works, but cannot keep anything now.
_UNABLE: Final = ("MISCONF", "NOREPLICAS", "BUSY ")


OVERLOAD: Final = "overload"
"""The kind of fault that is none of Redis': more waits to be sent to it than can be."""


class LedgerDown(Exception):
    """Redis did not answer in time, or cannot keep what it is given. The message is the kind of fault."""

    def __init__(self, why: str, *, sent: bool = False) -> None:
        """`sent`: whether the command was sent, so that Redis may still carry it out."""
        super().__init__(why)
        self.sent = sent


class Batch:
    """Sends commands to Redis in order, together, with bounded time."""

    def __init__(
        self,
        exchange: Callable[[Sequence[Command]], Awaitable[list[Any]]],
        timeout_seconds: float,
        reconnect: Callable[[], Any],
        changed: Callable[[bool, str], None],
        probe: str,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """`exchange` sends commands and returns their answers; `reconnect` drops all connections.

        `changed(up, why)` is told when Redis goes away and comes back.

        `probe` is the name of a Redis key that is written to see whether Redis is back; `before` is called before commands
        are sent.
        """
        self._exchange_all = exchange
        self._timeout_seconds = timeout_seconds
        self._reconnect = reconnect
        self._changed = changed
        self._before = before
        self._probe: Command = ("SET", probe, "1", "PX", 1000)
        self._waiting: deque[tuple[Command, asyncio.Future[Any]]] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._later: asyncio.TimerHandle | None = None
        self._prober: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._not_before = 0.0
        self.round_trips = Durations(ROUND_TRIPS)
        self.down = False
        """Whether the breaker answers in Redis' place now."""

    def submit(self, *command: Any, hurry: bool = True) -> asyncio.Future[Any]:
        """Return a future of the command's result; it fails with LedgerDown, or ResponseError for a bad command.

        Without `hurry` it may wait for a moment, and goes with what is sent next; the order is kept all the same.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.down or len(self._waiting) >= _WAITING_MAX:
            future.set_exception(LedgerDown("breaker" if self.down else OVERLOAD))
            return future
        self._waiting.append((command, future))
        if hurry:
            self._begin()
        elif self._worker is None and self._later is None:
            self._later = future.get_loop().call_later(_UNHURRIED_SECONDS, self._begin)
        return future

    async def drain(self) -> None:
        """Wait until everything submitted so far is answered."""
        self._begin()
        while self._worker is not None:
            await asyncio.shield(self._worker)

    async def aclose(self) -> None:
        """Wait for what was submitted, and look no more whether Redis is back."""
        await self.drain()
        looking = [task for task in (self._prober, self._looking) if task is not None]
        for task in looking:
            task.cancel()
        await asyncio.gather(*looking, return_exceptions=True)

    async def look(self) -> None:
        """Look now whether Redis is back, where it was away; whoever asks at once shares one look."""
        if not self.down or asyncio.get_running_loop().time() < self._not_before:
            return
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        await asyncio.shield(self._looking)

    def trip(self, seconds: float) -> None:
        """Behave for a while as if Redis were away."""
        self._open("drill", seconds)

    def _begin(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        if self._worker is None and self._waiting:
            self._worker = asyncio.ensure_future(self._work())

    async def _work(self) -> None:
        try:
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _BATCH_MAX))]
                await self._exchange(batch)
        finally:
            self._worker = None

    async def _exchange(self, batch: list[tuple[Command, asyncio.Future[Any]]]) -> None:
        self._before()
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with _patient(self._timeout_seconds):
                results = await self._send([command for command, _ in batch])
            self.round_trips.add(loop.time() - began)
        except FAULTS as error:
            await self._lost(type(error).__name__, batch)
            return
        except BaseException:
            await self._lost("cancelled", batch)
            raise
        self._answer(batch, results)
        unable = next((result for result in results if _unable(result)), None)
        if unable is not None:
            await self._lost(type(unable).__name__, [])

    async def _send(self, commands: Sequence[Command]) -> list[Any]:
        results = await self._exchange_all(commands)
        # A cluster that is moving a slot runs nothing of what it answers so: it is to be said again.
        while later := [number for number, result in enumerate(results) if isinstance(result, TryAgainError)]:
            await asyncio.sleep(_TRY_AGAIN_SECONDS)
            for number, result in zip(later, await self._exchange_all([commands[number] for number in later]), strict=True):
                results[number] = result
        return results

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
        self._open(why, 0)
        waiting = list(self._waiting)
        self._waiting.clear()
        for futures, sent in ((batch, True), (waiting, False)):
            for _, future in futures:
                if not future.done():
                    future.set_exception(LedgerDown(why, sent=sent))
        await self._forget_connections()

    def _open(self, why: str, seconds: float) -> None:
        if not self.down:
            self.down = True
            self._changed(False, why)
        self._not_before = max(self._not_before, asyncio.get_running_loop().time() + seconds)
        if self._prober is None:
            self._prober = asyncio.create_task(self._look_for_ever())

    async def _look_for_ever(self) -> None:
        pause = _PAUSE_FIRST_SECONDS
        try:
            while self.down:
                wait = self._not_before - asyncio.get_running_loop().time()
                if wait > 0:
                    pause = _PAUSE_FIRST_SECONDS
                # Jitter: replicas that lost Redis together must not come back together.
                await asyncio.sleep(max(0.0, wait) + pause * random.uniform(0.75, 1.25))  # noqa: S311 - no secret
                pause = min(2 * pause, _PAUSE_MAX_SECONDS)
                await self.look()
        finally:
            self._prober = None

    async def _look(self) -> None:
        """Close the breaker if Redis takes a write again."""
        try:
            async with _patient(self._timeout_seconds):
                (result,) = await self._send([self._probe])
        except Exception:  # Whatever it was, it was no answer; the breaker must not stay open for it.
            await self._forget_connections()
            return
        finally:
            self._looking = None
        if not isinstance(result, Exception):
            self.down = False
            self._changed(True, "")

    async def _forget_connections(self) -> None:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._reconnect()
        except Exception:  # noqa: S110 - it is gone already; the next command opens a new one
            pass


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
