"""The journal: a writer's records on its own disk, from before they are sent to Redis until they are sealed.

Files of one writer stand in one folder: `WRITER.NUMBER.jsonl`, a segment that begins with that record, and `WRITER.lock`,
which a living writer holds. What `write` has taken survives a kill of the process, what `sync` has taken one of the machine.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from gateway.audit import Head
from gateway.ledger.chain import Link

SEGMENT_BYTES: Final = 4 * 1024 * 1024
_UNWRITTEN_MAX: Final = 20_000
"""Records kept for a disk that takes none, while Redis takes them."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may wait for a Redis that is away."""

    bytes_max: int
    seconds_max: float
    disk_free_bytes_min: int


@dataclass(slots=True)
class _Segment:
    path: Path
    last: int
    file: int | None
    """None: it is full, and on the disk."""
    size: int = 0


class Journal:
    """The journal of one living writer."""

    def __init__(self, folder: Path, writer: str, bounds: Bounds) -> None:
        """Opens no segment before there is a record. Raises: OSError when the folder cannot be written."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder
        self.bounds = bounds
        self.broken = ""
        """Kind of error by which the disk refused the last write or sync; empty: it did not."""
        self.in_doubt = False
        """Whether a sync failed: what it left unwritten counts as written from then on, and is written anew at the next."""
        self._writer = writer
        self._lock = locked(folder, writer)
        self._folder_changed = False
        self._segments: deque[_Segment] = deque()
        self._unwritten: deque[tuple[int, bytes]] = deque()
        self._added = self._synced = 0
        self._syncing: asyncio.Task[None] | None = None

    def add(self, link: Link) -> None:
        """Take one record, for the next `write`."""
        self._unwritten.append((link.seq, link.record))
        self._added += 1

    def write(self) -> None:
        """Hand to the operating system what it does not have yet. Raises: OSError; the records wait for the next try."""
        if not self._unwritten:
            return
        try:
            if not self._segments or self._segments[-1].size >= SEGMENT_BYTES:
                self._begin_segment(self._unwritten[0][0])
            newest = self._segments[-1]
            data = b"".join([record + b"\n" for _, record in self._unwritten])
            assert newest.file is not None
            _append(newest.file, data, newest.size)
        except OSError as error:
            self.broken = type(error).__name__
            raise
        if not self.in_doubt:
            self.broken = ""
        newest.size += len(data)
        newest.last = self._unwritten[-1][0]
        self._unwritten.clear()

    async def sync(self) -> None:
        """Return when all that was taken before is on the disk; those who come together share one write. Raises: OSError."""
        number = self._added
        while self._synced < number:
            if self._syncing is None:
                self._syncing = asyncio.create_task(self._sync())
            # Shielded: who waits may give up, and the write must not be torn for the others.
            await asyncio.shield(self._syncing)

    def read_from(self, seq: int) -> Iterator[Link]:
        """Yield the records from a number on, in their order; what cannot be read is left out."""
        for segment in list(self._segments):
            if segment.last >= seq:
                yield from (link for link, _ in read_lines(segment.path, []) if link.seq >= seq)

    def forget(self, done: int, taken: int) -> int:
        """Remove the segments of records that are done with; beyond the bound of bytes those that Redis has, and count these."""
        early, total = 0, sum(segment.size for segment in self._segments)
        while len(self._segments) > 1 and self._syncing is None:
            oldest = self._segments[0]
            if oldest.last > done:
                if total <= self.bounds.bytes_max or oldest.last > taken:
                    break
                early += 1
            oldest.path.unlink(missing_ok=True)
            _give_up(oldest)
            total -= self._segments.popleft().size
        if self.broken:
            # What the disk does not take and Redis has is let go of in the end: the promise of two copies is broken anyhow.
            while len(self._unwritten) > _UNWRITTEN_MAX and self._unwritten[0][0] <= taken:
                self._unwritten.popleft()
                early += 1
        return early

    def ping(self) -> None:
        """Raise OSError when a record could not be journalled now."""
        self.write()
        if self.broken:
            raise OSError("the journal's disk does not take what it is given")
        if not os.access(self.folder, os.W_OK):
            raise OSError("the journal's folder is not writable")
        if self.disk_short:
            raise OSError("the journal's disk is full")

    @property
    def disk_short(self) -> bool:
        """Whether less of the disk is free than has to stay so."""
        return self.disk_free_bytes < self.bounds.disk_free_bytes_min

    @property
    def disk_free_bytes(self) -> int:
        """How much of the disk is free. Raises: OSError."""
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    @property
    def sizes(self) -> list[int]:
        """The bytes of each of its segments."""
        return [segment.size for segment in self._segments]

    def begun_anew(self, writer: str) -> Journal:
        """Return a journal under another name; what stands in this one is set aside, for somebody to look at."""
        for segment in self._segments:
            _give_up(segment)
        set_aside(self.folder, self._writer)
        os.close(self._lock)
        return Journal(self.folder, writer, self.bounds)

    async def aclose(self, *, sealed: bool) -> None:
        """Write what waits and give the files up, or, where all of them is sealed, remove them. Raises: OSError."""
        while self._syncing is not None:
            await asyncio.wait([self._syncing])
        try:
            self.write()
        finally:
            for segment in self._segments:
                if segment.file is not None:
                    os.fsync(segment.file)
                    _give_up(segment)
            if sealed or not self._segments:
                remove(self.folder, self._writer)
            os.close(self._lock)

    async def _sync(self) -> None:
        try:
            self.write()
            await self._bring_to_disk()
        finally:
            self._syncing = None

    async def _bring_to_disk(self) -> None:
        try:
            if self.in_doubt:
                self._write_anew()
            until = self._added
            unsynced = [(segment, segment.file) for segment in self._segments if segment.file is not None]
            folder, self._folder_changed = self.folder if self._folder_changed else None, False
            await asyncio.to_thread(_sync_all, [file for _, file in unsynced], folder)
        except OSError as error:
            self.broken, self.in_doubt, self._folder_changed = type(error).__name__, True, True
            raise
        for segment, _ in unsynced[:-1]:
            _give_up(segment)
        self._synced = until
        self.broken, self.in_doubt = "", False

    def _begin_segment(self, seq: int) -> None:
        path = segment_path(self.folder, self._writer, seq)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._folder_changed = True
        self._segments.append(_Segment(path, seq - 1, file))

    def _write_anew(self) -> None:
        """Put new files in the place of those that may not be on the disk, whatever it says of them. Raises: OSError."""
        for segment in self._segments:
            if segment.file is None:
                continue
            path = segment.path.with_suffix(".new")
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
            try:
                _append(file, segment.path.read_bytes(), 0)
                os.fdatasync(file)
                path.replace(segment.path)
            except OSError:
                os.close(file)
                raise
            _give_up(segment)
            segment.file = file


def locked(folder: Path, writer: str, *, wait: bool = True) -> int:
    """Take the lock of a writer's journal and return its descriptor. Raises: OSError; without `wait` where it is taken."""
    path = folder / f"{writer}.lock"
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # Whoever held it may have removed it: then it is nobody's file any more.
            if os.path.samestat(os.fstat(file), path.stat()):
                return file
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def writers(folder: Path) -> list[str]:
    """Return the writers, living and dead, that have records in a folder."""
    return sorted({path.name.rsplit(".", 2)[0] for path in folder.glob("*.jsonl")})


def segment_path(folder: Path, writer: str, seq: int) -> Path:
    """Return where a segment stands that begins with a writer's record of that number."""
    return folder / f"{writer}.{seq:012d}.jsonl"


def segment_paths(folder: Path, writer: str) -> list[Path]:
    """Return one writer's segments in order."""
    return [path for path in sorted(folder.glob("*.jsonl")) if path.name.rsplit(".", 2)[0] == writer]


def read_lines(path: Path, damaged: list[bytes]) -> Iterator[tuple[Link, Head]]:
    """Yield the records of one segment; lines that are none are put into `damaged`, but for a last one that was torn."""
    with path.open("rb") as file:
        for line in file:
            record = line.removesuffix(b"\n")
            try:
                yield Link.read(record)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                if line.endswith(b"\n") and record:
                    damaged.append(record)


def append_to(path: Path, lines: list[bytes]) -> None:
    """Bring lines to the disk, at the end of a file. Raises: OSError."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        _append(file, b"".join(line + b"\n" for line in lines), os.fstat(file).st_size)
        os.fdatasync(file)
    finally:
        os.close(file)


def drop_torn_line(path: Path) -> None:
    """Take off half a line at a file's end: a record that was never promised to be kept. Raises: OSError."""
    with path.open("r+b") as file:
        data = file.read()
        file.truncate(data.rfind(b"\n") + 1)


def set_aside(folder: Path, writer: str) -> None:
    """Keep a writer's segments, under names that nobody takes for a journal's."""
    for path in segment_paths(folder, writer):
        path.rename(path.with_suffix(".forked"))


def remove(folder: Path, writer: str) -> None:
    """Remove a writer's files, its lock last."""
    for path in (*segment_paths(folder, writer), *folder.glob(f"{writer}.*.new")):
        path.unlink(missing_ok=True)
    (folder / f"{writer}.lock").unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Bring to the disk which files a folder has. Raises: OSError."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _append(file: int, data: bytes, size: int) -> None:
    """Write data whole at the end of a file that has so many bytes, or leave it as it was. Raises: OSError."""
    try:
        while data:
            data = data[os.write(file, data) :]
    except OSError:
        # Half a line of a full disk would be taken for the beginning of the next record.
        os.ftruncate(file, size)
        raise


def _give_up(segment: _Segment) -> None:
    if segment.file is not None:
        os.close(segment.file)
        segment.file = None


def _sync_all(files: list[int], folder: Path | None) -> None:
    """Raises: OSError."""
    for file in files:
        os.fdatasync(file)
    if folder is not None:
        sync_folder(folder)
