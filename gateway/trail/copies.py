"""Copies of the sealed trail in S3-compatible storage: what nobody can take back who has this machine, and nothing else.

Under its prefix the bucket holds:
- `00000000000000000000.jsonl`: records, as a segment of the archive holds them, but no more than were new at a time; the
  name is the place of the first;
- `hashes-00000000000000000000`: their hashes; one behind the other they are the archive's `hashes`;
- `checkpoint`: the newest signed checkpoint whose records and hashes are all there.

Written in this order, so that the copy is a whole trail whenever it stops; who brings it down while it grows fetches the
checkpoint first. Each record is sent once, and of all objects the checkpoint alone is ever written again. Nothing is removed:
locks, retention and life cycles are the bucket's business.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from hashlib import md5
from itertools import islice
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gateway.trail.archive import CHECKPOINT, HASH_BYTES, HASHES, segment_name, segments
from gateway.trail.note import Checkpoint, NoteError

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import S3Config

EVERY_SECONDS: Final = 60.0
_PAUSE_SECONDS_MAX: Final = 300.0
_COMPARE_EVERY_SECONDS: Final = 600.0
_LAST_SECONDS: Final = 10.0
"""How long the end waits for what is not copied yet; it is copied when a sealer runs again."""
_ANSWER_SECONDS: Final = 30.0
# Small enough to be sent in the time of one answer over a slow line.
_OBJECT_BYTES: Final = 8 * 1024 * 1024
_NOWHERE: Final = 10**20 - 1
"""A place behind every other."""
_ADDRESS: Final = re.compile(r"s3://([a-z0-9][a-z0-9._-]+)(?:/([^?#]*?))?/*")
_RECORDS: Final = re.compile(r"(\d{20})\.jsonl")
_LEAVES: Final = re.compile(rf"{HASHES}-(\d{{20}})")
_ANSWERED: Final = re.compile(r"status code: (\d{3})|kind: (Timeout|Connect)\b")


class CopyError(Exception):
    """The copy is not what it should be. The message is one line, and tells neither an address nor a secret."""


class Copies:
    """The copy of one archive. Not for two threads at a time."""

    def __init__(self, url: str, endpoint: str | None = None, *, answer_seconds: float = _ANSWER_SECONDS) -> None:
        """Take `s3://bucket/prefix`, and the store's address where it is not the one of AWS. Nothing is sent yet.

        Credentials and region are found as obstore finds them: in the variables `AWS_…` of the environment, or by the role of
        the machine or container. A store that knows no conditional writes needs `AWS_CONDITIONAL_PUT=disabled`.
        Raises: CopyError.
        """
        try:
            import obstore  # noqa: PLC0415  not everybody has copies
            from obstore.store import S3Store  # noqa: PLC0415
        except ImportError:
            raise CopyError("copies need one package more: pip install 'masking-gateway[s3]'") from None
        address = _ADDRESS.fullmatch(url)
        if address is None:
            raise CopyError("the address of a copy is s3://BUCKET or s3://BUCKET/PREFIX")
        self._obstore = obstore
        # A bucket with a lock takes no object without a checksum.
        config: S3Config = {"checksum_algorithm": "sha256"}
        if endpoint:
            config["endpoint"] = endpoint
        with self._asking():
            self._store = S3Store(
                address[1],
                prefix=address[2] or None,
                config=config,
                client_options={
                    "allow_http": endpoint is not None and endpoint.startswith("http://"),
                    "connect_timeout": timedelta(seconds=min(5.0, answer_seconds)),
                    "timeout": timedelta(seconds=answer_seconds),
                },
                retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=answer_seconds)},
            )
        self._end: int | None = None
        """How many records are in the copy, with their hashes; None: the store has not been asked yet."""
        self._note = b""
        """The checkpoint that is in the copy, as far as is known."""
        self._next = 0
        """Place from which on segments are compared next."""
        self._tags_tell = True
        """Whether the store's tags are the MD5 of what it holds, as far as is known; where it encrypts they may not be."""
        self._until = inf
        """Monotonic seconds at which to break off."""

    @asynccontextmanager
    async def following(
        self, folder: Path, tell: Callable[[CopyError | None], None], every_seconds: float = EVERY_SECONDS
    ) -> AsyncIterator[None]:
        """Copy what is sealed meanwhile, now and then, beside everything else; and what is left at the end.

        `tell` is called when something is wrong, once, and with None when it no longer is.
        """
        ending = asyncio.Event()
        task = asyncio.create_task(self._follow(folder, tell, every_seconds, ending))
        try:
            yield
        finally:
            self._until = time.monotonic() + _LAST_SECONDS
            ending.set()
            await task

    async def _follow(
        self, folder: Path, tell: Callable[[CopyError | None], None], every_seconds: float, ending: asyncio.Event
    ) -> None:
        told, altered, pause, compared_at = "", set[str](), every_seconds, -inf
        while True:
            last, found = ending.is_set(), set[str]()
            try:
                await asyncio.to_thread(self.copy, folder)
                if not last and time.monotonic() - compared_at >= _COMPARE_EVERY_SECONDS:
                    found = await asyncio.to_thread(self.altered, folder)
                    compared_at = time.monotonic()
            except CopyError as error:
                pause = min(2 * pause, max(_PAUSE_SECONDS_MAX, every_seconds))
                if str(error) != told:
                    tell(error)
                told = str(error)
            else:
                pause = every_seconds
                if told:
                    tell(None)
                told = ""
                for name in sorted(found - altered):
                    tell(_holds_something_else(name))
                altered |= found
            if last:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await ending.wait()

    def copy(self, folder: Path) -> int:
        """Bring the copy up to the archive's newest checkpoint; return how many objects were written. Raises: CopyError."""
        with _reading():
            path = folder / CHECKPOINT
            note = path.read_bytes() if path.exists() else b""
            if note == self._note:
                return 0
            # What is signed is on the disk and never written again: all this may go on beside the sealer.
            size, written = _signed_size(note), 0
            if self._end is None:
                self._end = self._find_end(folder)
            if self._end > size:
                raise CopyError("the store holds more records than the archive: that was put back, or is another one")
            while self._end < size:
                if time.monotonic() > self._until:
                    raise CopyError(f"{size - self._end} records were left when the sealer ended")
                written += self._copy_some(folder, self._end, size)
            with self._asking():
                self._obstore.put(self._store, CHECKPOINT, note, use_multipart=False)
            self._note = note
            return written + 1

    def _copy_some(self, folder: Path, start: int, end: int) -> int:
        """Copy as many records as go into one object, and their hashes."""
        place, records = _records(folder, start, end)
        if records:
            place += self._create(segment_name(place), records, partly=True).count(b"\n")
        # Of records that were removed from the archive before they were copied, the hashes are there.
        steps = range(start, place, _OBJECT_BYTES // HASH_BYTES)
        for step in steps:
            leaves = _leaves(folder, step, min(place, step + steps.step))
            self._create(hashes_name(step), leaves)
            self._end = step + len(leaves) // HASH_BYTES
        return bool(records) + len(steps)

    def altered(self, folder: Path) -> set[str]:
        """Compare one segment of the archive, each time the next, with the store, and return the objects that are not as sent.

        By what the store's list tells: length and MD5, or length alone, where the store's tags are no MD5. What is missing is
        not told: the bucket's own rules may have removed it. Raises: CopyError.
        """
        with _reading():
            for first, end, path in _spans(folder, _NOWHERE):
                if end > self._next:
                    self._next = end if end < _NOWHERE else 0
                    return set(self._differing(first, path, end))
            return set()

    def _differing(self, first: int, path: Path, end: int) -> Iterator[str]:
        place = first
        with path.open("rb") as file:
            for piece, meta in self._listed(_RECORDS, segment_name(first), segment_name(end)):
                if piece < place:
                    # The one before it is longer than it was.
                    file.seek(0)
                    place = first
                for _ in islice(file, piece - place):
                    pass
                data = file.read(meta["size"])
                place = piece + data.count(b"\n")
                if not data.endswith(b"\n") or not self._is(meta, data):
                    yield meta["path"]

    def _is(self, meta: ObjectMeta, data: bytes) -> bool:
        if len(data) != meta["size"]:
            return False
        if not self._tags_tell or meta["e_tag"] == f'"{md5(data, usedforsecurity=False).hexdigest()}"':
            return True
        if self._get(meta["path"]) != data:
            return False
        self._tags_tell = False
        return True

    def _find_end(self, folder: Path) -> int:
        """Return how many records the store holds the hashes of. Of the newest segment's, most often: these are listed first."""
        for first in [*(place for place, _ in reversed(segments(folder))), 0]:
            newest = max((place for place, _ in self._listed(_LEAVES, hashes_name(first), hashes_name(_NOWHERE))), default=None)
            if newest is not None:
                held = self._get(hashes_name(newest))
                if not held or held != _leaves(folder, newest, newest + len(held) // HASH_BYTES):
                    raise _holds_something_else(hashes_name(newest))
                return newest + len(held) // HASH_BYTES
        return 0

    def _create(self, name: str, data: bytes, *, partly: bool = False) -> bytes:
        """Write an object that is not there, and return what it holds: the data, or what there was of it at another time."""
        with self._asking():
            try:
                self._obstore.put(self._store, name, data, mode="create", use_multipart=False)
                return data
            except self._obstore.exceptions.AlreadyExistsError:
                # Perhaps by this very request: its answer was lost, and it was sent again.
                held = self._get(name)
            except NotImplementedError:
                held = self._get(name)
                if held is None:
                    self._obstore.put(self._store, name, data, use_multipart=False)
                    return data
        if held == data or (partly and held and data.startswith(held) and held.endswith(b"\n")):
            return held
        raise _holds_something_else(name)

    def _get(self, name: str) -> bytes | None:
        with self._asking():
            try:
                return bytes(self._obstore.get(self._store, name).bytes())
            except FileNotFoundError:
                return None

    def _listed(self, kind: re.Pattern[str], start: str, end: str) -> Iterator[tuple[int, ObjectMeta]]:
        """Yield the objects of a kind from one name up to another, in order, each with its place."""
        with self._asking():
            # A list begins behind its offset: behind what the name begins with.
            for page in self._obstore.list(self._store, offset=start[:-1]):
                for meta in page:
                    if meta["path"] >= end:
                        return
                    match = kind.fullmatch(meta["path"])
                    if match and meta["path"] >= start:
                        yield int(match[1]), meta

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except self._obstore.exceptions.PermissionDeniedError:
            raise CopyError("the store forbids it") from None
        except self._obstore.exceptions.UnauthenticatedError:
            raise CopyError("the store does not accept the credentials") from None
        except FileNotFoundError:
            raise CopyError("the store has no such bucket") from None
        except (self._obstore.exceptions.BaseError, ValueError) as error:
            raise CopyError(_reason(error)) from None


def hashes_name(first: int) -> str:
    """Return the name of the object that holds the hashes of the records from a place on."""
    return f"{HASHES}-{first:020d}"


def _spans(folder: Path, end: int) -> list[tuple[int, int, Path]]:
    """Return the segments, and from which place to which each reaches."""
    found = segments(folder)
    ends = [*(first for first, _ in found[1:]), end]
    return [(first, following, path) for (first, path), following in zip(found, ends, strict=False)]


def _records(folder: Path, start: int, end: int) -> tuple[int, bytes]:
    """Return the first records there are from a place on, of one segment and for one object, and the place of the first."""
    for first, following, path in _spans(folder, end):
        if following <= start:
            continue
        place, records = max(start, first), bytearray()
        with path.open("rb") as file:
            for line in islice(file, place - first, min(following, end) - first):
                records += line
                if len(records) >= _OBJECT_BYTES:
                    break
        if not records.endswith(b"\n"):
            raise CopyError(f"{path.name} is shorter than what was sealed: see `gateway audit verify`")
        return place, bytes(records)
    return end, b""


def _leaves(folder: Path, start: int, end: int) -> bytes:
    with (folder / HASHES).open("rb") as file:
        found = os.pread(file.fileno(), (end - start) * HASH_BYTES, start * HASH_BYTES)
    if len(found) != (end - start) * HASH_BYTES:
        raise CopyError(f"{HASHES} is shorter than what was sealed, or than what the store holds: see `gateway audit verify`")
    return found


def _signed_size(note: bytes) -> int:
    try:
        return Checkpoint.parse(note.decode().rpartition("\n\n")[0]).size
    except (NoteError, UnicodeDecodeError):
        raise CopyError(f"the archive's {CHECKPOINT} is none: see `gateway audit verify`") from None


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CopyError(f"the archive cannot be read: {error.strerror}") from None


def _holds_something_else(name: str) -> CopyError:
    return CopyError(f"{name} in the store holds something else than the archive")


def _reason(error: Exception) -> str:
    """Return why the store did not do it; what the library says holds addresses."""
    found = _ANSWERED.search(str(error))
    if found is None:
        return f"the store failed: {type(error).__name__}"
    if found[1]:
        return f"the store answered {found[1]}"
    return "the store did not answer in time" if found[2] == "Timeout" else "the store cannot be reached"
