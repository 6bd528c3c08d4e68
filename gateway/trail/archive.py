"""The sealed trail on disk: segments of records as they are, one a line, and what the sealer must know to go on.

The folder holds:
- `00000000000000000000.jsonl`: records in the order of the tree; the name is the place of the first;
- `hashes`: 32 bytes for each record, its leaf in the tree; whole, also where old segments were removed;
- `checkpoint`: the newest signed checkpoint;
- `index.sqlite`: where each record stands and what it is found by; made again from the segments where it is missing;
- `state.json`: how far all of this is valid. What stands behind it was written by a sealer that died, and is written again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Final, NamedTuple, Self

import msgspec

from gateway.audit import Head, chained
from gateway.errors import Complaint
from gateway.ledger.journal import sync_folder
from gateway.trail.index import Entry, Index
from gateway.trail.merkle import Tree

SEGMENT_BYTES: Final = 64 * 1024 * 1024
HASH_BYTES: Final = 32
CHECKPOINT: Final = "checkpoint"
HASHES: Final = "hashes"
PUBLIC_KEY: Final = "public.key"
"""Put there by the sealer, for who verifies on its machine."""
INDEX: Final = "index.sqlite"
STATE: Final = "state.json"
_AT_ONCE: Final = 10_000
_SEQ_END: Final = 1 << 53
_WRITER: Final = re.compile(r"[!-~]{1,200}")
"""As a checkpoint names one: a word."""
_read_head = msgspec.json.Decoder(Head).decode


class ArchiveError(Complaint):
    """The archive cannot be used as it is. The message is one line: the reason and the fix."""


class Tip(msgspec.Struct, array_like=True):
    """The last sealed record of one writer."""

    account: str
    seq: int
    hash: str
    """`chained` of it, in hexadecimal."""
    at: str
    opened: bool
    """Whether it serves callers, and so has to close; the others are commands, which write once or twice and are gone."""
    closed: bool


class State(msgspec.Struct, kw_only=True):
    """How far an archive is valid."""

    id: str = msgspec.field(default_factory=lambda: secrets.token_hex(8))
    """Tells archives apart."""
    size: int = 0
    """Records."""
    segment: int = 0
    """Place of the first record of the newest segment."""
    segment_bytes: int = 0
    positions: dict[str, str] = msgspec.field(default_factory=dict)
    """Of each stream: the id of the last entry that is sealed."""
    tips: dict[str, Tip] = msgspec.field(default_factory=dict)
    """Of each writer that has not closed, and of those that closed lately."""


class _Fresh(NamedTuple):
    record: bytes
    hashed: bytes
    head: Head


class Archive:
    """An archive that one process adds to."""

    def __init__(self, folder: Path) -> None:
        """Open or make one, and drop what a sealer that died left behind the last valid record.

        Raises: ArchiveError, OSError.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise ArchiveError(f"{folder} is being added to by another process") from None
        try:
            self.state = self._begun()
        except BaseException:
            os.close(self._lock)
            raise
        self._hashes = self._open_at(HASHES, self.state.size * HASH_BYTES)
        self._rows = self._open_at(segment_name(self.state.segment), self.state.segment_bytes)
        self.tree = Tree()
        for leaves in stored_hashes(folder):
            self.tree.extend(leaves)
        self.index = Index(folder / INDEX)
        self.index.cut(self.state.size)
        for entries in _batches(entries_from(folder, self.index.size, self.state.size), _AT_ONCE):
            self.index.add(entries)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give the folder up."""
        self.index.close()
        self._rows.close()
        self._hashes.close()
        os.close(self._lock)

    def add(self, records: Sequence[bytes], positions: Mapping[str, str], account: str) -> list[str]:
        """Take records of one account that are not in it yet, in their order, and return what is wrong with them.

        Each is one that `is_sealable`. On the disk when this returns. Wrong is: another record under an identity that is
        known, and a record that does not follow on the one before it of its writer. Raises: OSError.
        """
        fresh: dict[tuple[str, int], _Fresh] = {}
        wrong = []
        for record in records:
            head, hashed = _read_head(record), chained(record)
            identity = (head.writer, head.seq)
            known = fresh[identity].hashed if identity in fresh else self._sealed(head)
            if known is None:
                fresh[identity] = _Fresh(record, hashed, head)
            elif known != hashed:
                wrong.append(f"{head.id} was written twice, with different words")
        if fresh:
            self._write(list(fresh.values()))
        for one in fresh.values():
            wrong += self._advance(one, account)
        self.state.positions.update(positions)
        write_whole(self.folder / STATE, msgspec.json.encode(self.state))
        return wrong

    def publish(self, checkpoint: str) -> None:
        """Make a signed checkpoint of all there is the newest. Raises: OSError."""
        write_whole(self.folder / CHECKPOINT, checkpoint.encode())

    def forget(self, commands_before: str, closed_before: str) -> list[tuple[str, str]]:
        """Name no longer commands, and writers that closed, before an instant each; return their accounts and names."""
        over = [
            (tip.account, name)
            for name, tip in self.state.tips.items()
            if (tip.closed and tip.at < closed_before) or (not tip.opened and tip.at < commands_before)
        ]
        for _, name in over:
            del self.state.tips[name]
        return over

    def older_than(self, at: str) -> tuple[int, bytes]:
        """Return the place up to which whole segments are older than an instant, and the root of the tree up to there.

        0 where there is nothing to remove. Raises: OSError.
        """
        before = 0
        for (_, path), (following, _) in pairwise(segments(self.folder)):
            if any(_read_head(line).at >= at for line in lines(path)):
                break
            before = following
        tree = Tree()
        for leaves in stored_hashes(self.folder):
            tree.extend(leaves[: max(0, before - tree.size)])
        return before, tree.root

    def remove(self, before: int) -> None:
        """Remove the segments whose records all stand before a place; their hashes stay. Raises: OSError."""
        found = segments(self.folder)
        self.index.forget(before)
        for (_, path), (following, _) in pairwise(found):
            if following <= before:
                path.unlink()

    def _begun(self) -> State:
        """Return how far the archive is valid; a new one is given its name before anybody hears of it."""
        if (self.folder / STATE).exists():
            return read_state(self.folder)
        if segments(self.folder) or (self.folder / HASHES).exists():
            raise ArchiveError(f"{self.folder} has records and no {STATE}: it is a copy, to be verified and not to be added to")
        state = State()
        write_whole(self.folder / STATE, msgspec.json.encode(state))
        return state

    def _sealed(self, head: Head) -> bytes | None:
        tip = self.state.tips.get(head.writer)
        if tip is not None and head.seq > tip.seq:
            return None
        place = self.index.place_of(head.writer, head.seq)
        return None if place is None else os.pread(self._hashes.fileno(), HASH_BYTES, place * HASH_BYTES)

    def _advance(self, one: _Fresh, account: str) -> list[str]:
        head, tip = one.head, self.state.tips.get(one.head.writer)
        if tip is not None and head.seq <= tip.seq:
            return []  # It was missing, and was told to be.
        opened = head.stage == "open" or (tip is not None and tip.opened)
        self.state.tips[head.writer] = Tip(account, head.seq, one.hashed.hex(), head.at, opened, head.stage == "close")
        if head.seq != (0 if tip is None else tip.seq + 1):
            return [f"{head.id} does not follow on {head.writer}-{-1 if tip is None else tip.seq}: records are missing"]
        if head.prev != ("" if tip is None else tip.hash):
            return [f"{head.id} does not name the record before it: one of the two is not what was written"]
        return []

    def _write(self, fresh: Sequence[_Fresh]) -> None:
        state = self.state
        if state.segment_bytes >= SEGMENT_BYTES:
            self._rows.close()
            state.segment, state.segment_bytes = state.size, 0
            self._rows = self._open_at(segment_name(state.segment), 0)
        lines = b"".join(one.record + b"\n" for one in fresh)
        for file, end, data in (
            (self._rows, state.segment_bytes, lines),
            (self._hashes, state.size * HASH_BYTES, b"".join(one.hashed for one in fresh)),
        ):
            # Behind the end may stand what a write that failed left there.
            file.seek(end)
            file.write(data)
            file.flush()
            file.truncate()
            os.fdatasync(file.fileno())
        entries, offset = [], state.segment_bytes
        for place, one in enumerate(fresh, state.size):
            entries.append(Entry(place, offset, one.record))
            offset += len(one.record) + 1
        self.index.add(entries)
        self.tree.extend(one.hashed for one in fresh)
        state.size += len(fresh)
        state.segment_bytes = offset

    def _open_at(self, name: str, size: int) -> IO[bytes]:
        file = os.fdopen(os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
        if os.fstat(file.fileno()).st_size < size:
            file.close()
            raise ArchiveError(f"{self.folder / name} is shorter than what was sealed: restore it from a copy")
        file.truncate(size)
        return file


class Reader:
    """An archive as who searches it needs it: its records by their places, while a sealer may add to it."""

    def __init__(self, folder: Path) -> None:
        """Raises: ArchiveError where there is none, OSError."""
        if not (folder / STATE).exists():
            raise ArchiveError(f"there is no sealed trail in {folder}: see `gateway audit seal`")
        self.folder = folder
        self.state = read_state(folder)
        self.index = Index(folder / INDEX, read_only=True)
        self._files: dict[int, IO[bytes]] = {}

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close what is open."""
        self.index.close()
        for file in self._files.values():
            file.close()

    def refresh(self) -> int:
        """Look how far the trail is sealed now; return how many records are. Raises: ArchiveError, OSError."""
        self.state = read_state(self.folder)
        return min(self.state.size, self.index.size)

    def records(self, where: Iterable[tuple[int, int]]) -> Iterator[bytes]:
        """Yield the records at these places and offsets, as they are. Raises: OSError."""
        firsts = [first for first, _ in segments(self.folder)]
        for place, offset in where:
            if not firsts or place < firsts[0]:
                continue  # It was removed meanwhile.
            first = firsts[bisect_right(firsts, place) - 1]
            if first not in self._files:
                self._files[first] = (self.folder / segment_name(first)).open("rb")
            self._files[first].seek(offset)
            yield self._files[first].readline().removesuffix(b"\n")


def is_sealable(record: bytes) -> bool:
    """Say whether a record can stand in an archive: on one line, with a head that can be read, of a writer that can be named."""
    try:
        head = _read_head(record)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return b"\n" not in record and 0 <= head.seq < _SEQ_END and _WRITER.fullmatch(head.writer) is not None


def segment_name(first: int) -> str:
    """Return the name of the segment that begins at a place."""
    return f"{first:020d}.jsonl"


def read_state(folder: Path) -> State:
    """Return how far an archive is valid. Raises: ArchiveError, OSError."""
    try:
        return msgspec.json.decode((folder / STATE).read_bytes(), type=State)
    except FileNotFoundError:
        return State()
    except msgspec.MsgspecError:
        raise ArchiveError(f"{folder / STATE} cannot be read: restore it from a copy") from None


def segments(folder: Path) -> list[tuple[int, Path]]:
    """Return the segments there are, in order, each with the place of its first record."""
    return sorted((int(path.stem), path) for path in folder.glob("[0-9]*.jsonl") if path.stem.isdecimal())


def lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a segment without their newlines; a torn last one is none."""
    with path.open("rb", buffering=1 << 20) as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line[:-1]


def open_hashes(folder: Path) -> IO[bytes]:
    """Open the leaves of all records; a copy has them in parts, which are put together. Raises: OSError."""
    parts = sorted(folder.glob(f"{HASHES}-*"))
    if (folder / HASHES).exists() or not parts:
        return (folder / HASHES).open("rb")
    whole = TemporaryFile()  # noqa: SIM115 - who asked for it closes it
    for part in parts:
        if not part.is_file():
            raise OSError(errno.EINVAL, "it is no file")
        with part.open("rb") as file:
            shutil.copyfileobj(file, whole)
    whole.flush()
    return whole


def stored_hashes(folder: Path) -> Iterator[list[bytes]]:
    """Yield the leaves of all records, in order, many at a time."""
    with (folder / HASHES).open("rb") as file:
        while data := file.read(HASH_BYTES * _AT_ONCE):
            yield split_hashes(data)


def split_hashes(packed: bytes) -> list[bytes]:
    """Return hashes that stand one behind the other, each by itself."""
    return [packed[start : start + HASH_BYTES] for start in range(0, len(packed), HASH_BYTES)]


def entries_from(folder: Path, start: int, end: int) -> Iterator[Entry]:
    """Yield the records from place `start` up to `end` with where they stand; what was removed is passed over."""
    found = segments(folder)
    for number, (first, path) in enumerate(found):
        last = found[number + 1][0] if number + 1 < len(found) else end
        if last <= start or first >= end:
            continue
        offset = 0
        for place, line in enumerate(lines(path), first):
            if start <= place < end:
                yield Entry(place, offset, line)
            offset += len(line) + 1


def _batches(entries: Iterator[Entry], count: int) -> Iterator[list[Entry]]:
    batch: list[Entry] = []
    for entry in entries:
        batch.append(entry)
        if len(batch) == count:
            yield batch
            batch = []
    if batch:
        yield batch


def write_whole(path: Path, data: bytes) -> None:
    """Put a file in the place of another at once, on the disk. Raises: OSError."""
    new = path.with_name(f".{path.name}.new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    sync_folder(path.parent)
