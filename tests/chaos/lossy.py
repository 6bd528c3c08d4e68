"""A way to Redis that can be made to lose answers, and that can be led to another Redis: a unix socket before a unix socket."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Literal

from tests.chaos.threads import InThread

Mode = Literal["", "swallow", "cut"]


class LossyRoad(InThread):
    """Takes every command to Redis, and not every answer back."""

    def __init__(self, socket: Path, target: Path, chance: random.Random) -> None:
        self.url = f"unix://{socket}"
        self.target = target
        """Where new connections go."""
        self.mode: Mode = ""
        """`swallow`: answers do not come; `cut`: of some a part comes, and the connection is gone."""
        self._socket = socket
        self._chance = chance
        self._open: set[asyncio.StreamWriter] = set()
        super().__init__()

    def lead_to(self, target: Path) -> None:
        """Let everybody who is connected come again, and find another Redis."""
        self.target = target
        self._loop.call_soon_threadsafe(self._drop_all)

    def mend(self) -> None:
        """Lose nothing any more; a connection of which an answer was lost is of no use and ends."""
        self.mode = ""
        self._loop.call_soon_threadsafe(self._drop_all)

    def _drop_all(self) -> None:
        for writer in self._open:
            writer.close()

    async def _serve(self) -> None:
        server = await asyncio.start_unix_server(self._connected, self._socket)
        self._ready.set()
        async with server:
            await self._stop.wait()
        await self._end_the_rest()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_redis, to_redis = await asyncio.open_unix_connection(self.target)
        except OSError:
            writer.close()
            return
        self._open |= {writer, to_redis}
        try:
            await asyncio.gather(self._there(reader, to_redis), self._back(from_redis, writer), return_exceptions=True)
        finally:
            self._open -= {writer, to_redis}

    async def _there(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(1 << 16):
                target.write(data)
                await target.drain()
        finally:
            target.close()

    async def _back(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        swallowing = False
        try:
            while data := await source.read(1 << 16):
                swallowing = swallowing or self.mode == "swallow"
                if swallowing:
                    continue
                if self.mode == "cut" and self._chance.random() < 0.2:
                    target.write(data[: self._chance.randrange(len(data))])
                    break
                target.write(data)
                await target.drain()
        finally:
            target.close()
