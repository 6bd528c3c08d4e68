"""Verifies the sealed trail in a process of its own, one review at a time, so that pages are served meanwhile."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from gateway.trail.note import PublicKey
from gateway.trail.verify import Report, verify

_PROCESSES: Final = multiprocessing.get_context("spawn")
_TELL_SECONDS: Final = 0.25


@dataclass(slots=True)
class Review:
    """One reading of the whole trail, under way or ended."""

    who: str
    """Who asked for it."""
    began_at: float
    """Unix seconds."""
    by_own_key: bool
    """Whether it believes the key that stands in the archive."""
    compared: bool
    """Whether it holds the trail against a checkpoint that was kept."""
    done: int = 0
    """Records read."""
    total: int = 0
    """Records there are; 0 before that is known."""
    ended_at: float | None = None
    report: Report | None = None
    """None where it ended without one: its process died."""


class Verifier:
    """The review under way, or the last one."""

    def __init__(self) -> None:
        """Starts nothing."""
        self.review: Review | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a review is under way."""
        return self.review is not None and self.review.ended_at is None

    def begin(self, who: str, folder: Path, key: PublicKey, *, by_own_key: bool, older: str | None) -> bool:
        """Begin a review, and say whether one was begun: not while another is under way. Needs a running loop.

        `older`: a checkpoint that was kept. Raises: OSError.
        """
        if self.is_busy:
            return False
        hears, tells = _PROCESSES.Pipe(duplex=False)
        process = _PROCESSES.Process(target=_verify, args=(tells, folder, str(key), older), daemon=True)
        process.start()
        tells.close()
        self.review = Review(who, time.time(), by_own_key, older is not None)
        asyncio.get_running_loop().add_reader(hears, _hear, hears, self.review)
        return True


def _hear(hears: Connection, review: Review) -> None:
    """Take the next word of a review: how far it is, or what it found."""
    try:
        told = hears.recv()
    except EOFError:
        told = None
    if isinstance(told, tuple):
        review.done, review.total = told
        return
    asyncio.get_running_loop().remove_reader(hears)
    hears.close()
    review.report, review.ended_at = told, time.time()


def _verify(tells: Connection, folder: Path, key: str, older: str | None) -> None:
    next_at = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal next_at
        if time.monotonic() >= next_at:
            next_at = time.monotonic() + _TELL_SECONDS
            tells.send((done, total))

    tells.send(verify(folder, PublicKey.parse(key), older=older, progress=progress))
