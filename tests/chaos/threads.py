"""Work in threads of its own, whose errors are the test's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Self


def guarded(broken: list[str], work: Callable[..., None], *arguments: object) -> threading.Thread:
    """Return a thread that does some work; what it raises is noted in `broken`."""

    def run() -> None:
        try:
            work(*arguments)
        except Exception as error:
            broken.append(f"{work.__name__}: {error!r}")

    return threading.Thread(target=run)


class InThread:
    """Something that serves in a loop and a thread of its own, from when it is entered until it is left."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)
        self._ready = threading.Event()
        self._stop = asyncio.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self) -> None:
        """Begin, set `_ready`, and end once `_stop` is set."""
        raise NotImplementedError

    async def _end_the_rest(self) -> None:
        """Cancel whatever else runs in the loop."""
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
