"""Where records wait while Redis is away: one file per writer, carried over later, also by the next process.

A record is in the operating system's hands once `flush` or `keep` has returned, and on the disk: a killed process loses none.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections import deque
from itertools import islice
from pathlib import Path
from typing import Final

BYTES_MAX: Final = 256 * 1024 * 1024


class Journal:
    """The records of this writer, and of writers that died, that Redis has not taken yet."""

    def __init__(self, folder: Path, writer: str) -> None:
        """Take over the files of dead writers. Raises: OSError when the folder cannot be written."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        # Counted from the first record ever: what is dropped while a write is under way moves none of them.
        self._dropped_before = 0
        self._written = 0
        self._writing: asyncio.Task[None] | None = None
        self._path = folder / f"{writer}.jsonl"
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._inherit(folder)
        self.dropped = 0
        """Records lost because the journal was full."""

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether nothing more can be taken."""
        return self._bytes >= BYTES_MAX

    def add(self, record: bytes) -> None:
        """Take one record; it is on the disk after the next flush."""
        if self.full:
            self.dropped += 1
            return
        self._waiting.append(record)
        self._bytes += len(record)

    async def keep(self, record: bytes) -> None:
        """Take one record and return when it is on the disk; those that come together share one write.

        Raises: OSError; the record may be written later all the same.
        """
        if self.full:
            raise OSError("the journal is full")
        self.add(record)
        number = self._dropped_before + len(self._waiting)
        while self._written < number:
            await self.flush()

    async def flush(self) -> None:
        """Bring to the disk what is not there yet, in one write. Raises: OSError; the records are still waiting then."""
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())
        # Shielded: who waits may give up, and the write must not be torn for the others.
        await asyncio.shield(self._writing)

    def head(self, count: int) -> list[bytes]:
        """Return the oldest records."""
        return list(islice(self._waiting, count))

    def drop(self, count: int) -> None:
        """Forget the oldest records: Redis has them."""
        for _ in range(count):
            self._bytes -= len(self._waiting.popleft())
        self._dropped_before += count
        self._written = max(self._written, self._dropped_before)
        if not self._waiting and self._writing is None:
            os.ftruncate(self._file, 0)

    def ping(self) -> None:
        """Raise OSError when a record could not be journalled now."""
        if self.full:
            raise OSError("the journal is full")
        os.fdatasync(self._file)
        if not os.access(self._path.parent, os.W_OK):
            raise OSError("the journal's folder is not writable")

    def close(self) -> None:
        """Write what waits and give the file up; an empty one is removed."""
        fresh = self._fresh()
        if fresh:
            self._append(fresh)
        if not self._waiting:
            self._path.unlink(missing_ok=True)
        os.close(self._file)

    async def _write(self) -> None:
        try:
            fresh = self._fresh()
            if fresh:
                until = self._dropped_before + len(self._waiting)
                await asyncio.to_thread(self._append, fresh)
                self._written = max(self._written, until)
        finally:
            self._writing = None

    def _fresh(self) -> list[bytes]:
        return list(islice(self._waiting, self._written - self._dropped_before, None))

    def _append(self, records: list[bytes]) -> None:
        data = b"".join(record + b"\n" for record in records)
        while data:
            data = data[os.write(self._file, data) :]
        os.fdatasync(self._file)

    def _inherit(self, folder: Path) -> None:
        """Move the records of dead writers into this one's file; a living writer holds the lock of its own."""
        for path in sorted(folder.glob("*.jsonl")):
            if path == self._path:
                continue
            try:
                file = os.open(path, os.O_RDWR)
            except OSError:
                continue
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # A torn last line is a record that was never promised to be kept.
                records = [line for line in path.read_bytes().split(b"\n")[:-1] if line]
                if records:
                    self._append(records)
                    self._waiting.extend(records)
                    self._written += len(records)
                    self._bytes += sum(map(len, records))
                path.unlink()
            except OSError:
                continue
            finally:
                os.close(file)
