"""Where records wait while Redis is away: one file per writer, carried over later, also by the next process.

A record is in the operating system's hands once `flush` or `keep` has returned, and on the disk: a killed process loses none.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec

from gateway.audit import Head

BYTES_MAX: Final = 256 * 1024 * 1024


class Waiting(Head, kw_only=True):
    """What a journalled record tells of the intent it opens or closes."""

    key_version: int | None = None


read_waiting = msgspec.json.Decoder(Waiting).decode


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
        self._file = _locked(self._path)
        self.dropped = 0
        """Records lost because the journal was full."""
        self.damaged = 0
        """Lines of dead writers that are no records: a disk that was full or broke. They are kept in the file `damaged`."""
        self._inherit(folder)

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
        self._empty()

    def ping(self) -> None:
        """Raise OSError when a record could not be journalled now."""
        if self.full:
            raise OSError("the journal is full")
        os.fdatasync(self._file)
        if not os.access(self._path.parent, os.W_OK):
            raise OSError("the journal's folder is not writable")

    async def aclose(self) -> None:
        """Write what waits and give the file up; an empty one is removed."""
        while self._writing is not None:
            await asyncio.wait([self._writing])
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
        self._empty()

    def _empty(self) -> None:
        """Truncate the file when nothing waits: a successor must not open again what was closed since."""
        if not self._waiting and self._writing is None:
            os.ftruncate(self._file, 0)

    def _fresh(self) -> list[bytes]:
        return list(islice(self._waiting, self._written - self._dropped_before, None))

    def _append(self, records: list[bytes]) -> None:
        _append(self._file, _lines(records))

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
                records = list(self._readable(path))
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

    def _readable(self, path: Path) -> Iterator[bytes]:
        """Yield the records of a dead writer's file, and set aside what is none."""
        # A torn last line is a record that was never promised to be kept.
        damaged = []
        for line in path.read_bytes().split(b"\n")[:-1]:
            if _is_record(line):
                yield line
            elif line:
                damaged.append(line)
        self.damaged += len(damaged)
        if damaged:
            with os.fdopen(os.open(path.with_name("damaged"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as aside:
                _append(aside.fileno(), _lines(damaged))


def _lines(records: list[bytes]) -> bytes:
    return b"".join(record + b"\n" for record in records)


def _locked(path: Path) -> int:
    """Open a file that is ours: who inherits from dead writers may have taken a new one for a dead one's, and removed it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            if os.path.samestat(os.fstat(file), path.stat()):
                return file
        except FileNotFoundError:
            pass
        os.close(file)


def _append(file: int, data: bytes) -> None:
    """Bring data to the disk whole, or leave the file as it was. Raises: OSError."""
    before = os.fstat(file).st_size
    try:
        while data:
            data = data[os.write(file, data) :]
        os.fdatasync(file)
    except OSError:
        # Half a line of a full disk would be taken for the beginning of the next record.
        os.ftruncate(file, before)
        raise


def _is_record(line: bytes) -> bool:
    try:
        return bool(read_waiting(line).at_us)
    except (msgspec.MsgspecError, ValueError):
        return False
