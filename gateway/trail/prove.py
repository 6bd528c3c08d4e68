"""The proof that records are in a sealed trail, for somebody who has no trail: a document, and how it is checked.

A proof is made from the records, the file of hashes and the signed checkpoint; it is checked with the sealer's public key
and nothing else.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, Self

import msgspec

from gateway.audit import chained
from gateway.trail.archive import CHECKPOINT, HASH_BYTES, Reader, lines, open_hashes, segments
from gateway.trail.index import Query
from gateway.trail.merkle import EMPTY, included
from gateway.trail.note import Checkpoint, NoteError, PublicKey, verified

FORMAT: Final = "masking-gateway-proof/1"
_RECORDS_MAX: Final = 1000
_CHUNK: Final = 4096
"""Leaves that are hashed together; a power of two, so that their tree is a subtree of the whole."""


class ProofError(Exception):
    """Something is not proved. The message is one line."""


class Leaves:
    """The file of hashes, read as the tree whose leaves they are; holds one hash of 4096 of them.

    The tree of RFC 6962 is the one where neighbours become one, level by level, and the last of an odd number goes up as it
    is. Of packed hashes a level is one list comprehension.
    """

    def __init__(self, file: IO[bytes], tops: bytearray | None = None) -> None:
        """`file` is closed by this. `tops`: kept by who asks often about one file, in which hashes are kept. Raises: OSError."""
        self._file = file
        self._kept = bytearray() if tops is None else tops
        self.size = os.fstat(self._file.fileno()).st_size // HASH_BYTES
        """Whole leaves that were there when it was opened."""

    @staticmethod
    def held(tops: bytearray) -> int:
        """Return how many leaves the hashes that are kept are of."""
        return len(tops) // HASH_BYTES * _CHUNK

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._file.close()

    def packed(self, start: int, end: int) -> bytes:
        """Return the leaves from place `start` up to `end`, one behind the other; fewer where there are no more."""
        return os.pread(self._file.fileno(), max(0, min(end, self.size) - start) * HASH_BYTES, start * HASH_BYTES)

    def chunks(self, end: int, start: int = 0) -> Iterator[bytes]:
        """Yield the leaves from place `start` up to `end`, many at a time, packed."""
        for first in range(start, min(end, self.size), _CHUNK):
            yield self.packed(first, min(first + _CHUNK, end))

    def root(self, size: int) -> bytes:
        """Return the root of the tree of the first `size` leaves, of those there are."""
        return _climb(self._tops(size), 0)[1] if size else EMPTY

    def inclusion(self, place: int, size: int) -> list[bytes]:
        """Return the proof that the leaf at a place is in the tree of the first `size` leaves."""
        start = place - place % _CHUNK
        below, _ = _climb(self.packed(start, min(start + _CHUNK, size)), place - start)
        above, _ = _climb(self._tops(size), place // _CHUNK)
        return below + above

    def _tops(self, size: int) -> bytes:
        whole = size // _CHUNK
        rest = self.packed(whole * _CHUNK, size)
        return self._whole[: whole * HASH_BYTES] + (_climb(rest, 0)[1] if rest else b"")

    @cached_property
    def _whole(self) -> bytes:
        whole, known = self.size - self.size % _CHUNK, self.held(self._kept)
        for chunk in self.chunks(whole, known):
            self._kept += _climb(chunk, 0)[1]
        return bytes(self._kept[: whole // _CHUNK * HASH_BYTES])


def _climb(level: bytes, index: int) -> tuple[list[bytes], bytes]:
    """Return the brothers of one node of a level on its way up, and the root above the level."""
    brothers, hashed = [], sha256
    while len(level) > HASH_BYTES:
        brother = (index ^ 1) * HASH_BYTES
        if brother < len(level):
            brothers.append(level[brother : brother + HASH_BYTES])
        alone = level[-HASH_BYTES:] if len(level) % (2 * HASH_BYTES) else b""
        pairs = range(0, len(level) - len(alone), 2 * HASH_BYTES)
        level = b"".join([hashed(b"\x01" + level[start : start + 2 * HASH_BYTES]).digest() for start in pairs]) + alone
        index >>= 1
    return brothers, level


class Proved(NamedTuple):
    """A record that is in the trail."""

    place: int
    """How many records are before it."""
    record: bytes


class _Row(msgspec.Struct, omit_defaults=True):
    place: int
    proof: list[str]
    record: str | None = None
    record_base64: str | None = None
    """Instead of `record`, where it is no text."""


class _Document(msgspec.Struct):
    format: str
    checkpoint: str
    records: list[_Row]


def prove_request(reader: Reader, request_id: str, tops: bytearray | None = None) -> dict[str, Any] | None:
    """Return the proof of all sealed records of a request, under the newest checkpoint; None: there are none.

    `tops`: as `Leaves` takes it. Raises: ProofError, BrokenIndex, OSError.
    """
    found = reader.index.find(Query(request_id=request_id), limit=_RECORDS_MAX + 1)
    if len(found) > _RECORDS_MAX:
        raise ProofError(f"more than {_RECORDS_MAX} records have this request id, which callers choose")
    return prove_found(reader, found, tops) if found else None


def prove_found(
    reader: Reader, found: Sequence[tuple[int, int]], tops: bytearray | None = None, note: str | None = None
) -> dict[str, Any]:
    """Return the proof of records at places and offsets, as the index tells them. Raises: as `prove_request`.

    `note`: the signed checkpoint; None: the newest.
    """
    note = (reader.folder / CHECKPOINT).read_text(encoding="utf-8") if note is None else note
    records = {where[0]: record for where in found for record in reader.records([where])}
    return prove(reader.folder, [place for place, _ in found], note, records, tops)


def prove(
    folder: Path,
    places: Sequence[int],
    note: str,
    records: Mapping[int, bytes] | None = None,
    tops: bytearray | None = None,
) -> dict[str, Any]:
    """Return the proof that the records at these places are in the tree of a signed checkpoint of this archive.

    `records`: by their places, where they were read already. `tops`: as `Leaves` takes it.

    Fit for JSON: `format`, `checkpoint` (the note), and of each record `place`, `record` (its bytes as text;
    `record_base64` where they are none) and `proof` (hexadecimal, from the leaf upwards). Raises: ProofError, OSError.
    """
    try:
        checkpoint = Checkpoint.parse(note.rpartition("\n\n")[0])
    except NoteError as fault:
        raise ProofError(f"the checkpoint cannot be read: {fault}") from None
    wanted = sorted(set(places))
    if not wanted:
        raise ProofError("there is no record to prove")
    if wanted[0] < 0 or wanted[-1] >= checkpoint.size:
        raise ProofError(f"the checkpoint covers {checkpoint.size} records: what came later is not sealed yet")
    found = dict(_records(folder, wanted)) if records is None else records
    rows = []
    with Leaves(open_hashes(folder), tops) as leaves:
        for place in wanted:
            if place not in found:
                raise ProofError(f"the record at place {place} is not in {folder}: was it removed?")
            proof = leaves.inclusion(place, checkpoint.size)
            if not included(chained(found[place]), place, checkpoint.size, proof, checkpoint.root):
                raise ProofError(f"the record at place {place} is not what was sealed, or its hashes are not: verify the trail")
            rows.append(_row(place, found[place], proof))
    document: dict[str, Any] = msgspec.to_builtins(_Document(FORMAT, note, rows))
    return document


def check_proof(document: object, key: PublicKey) -> list[Proved]:
    """Return the records that a document proves to be in the trail of this key's sealer, in the document's order.

    The document, as JSON is read, may come from anybody. Raises: ProofError.
    """
    try:
        told = msgspec.convert(document, type=_Document)
    except (msgspec.MsgspecError, RecursionError):
        raise ProofError("it is no proof: a checkpoint and records with their proofs are expected") from None
    if told.format != FORMAT:
        raise ProofError(f"it is no proof of the format {FORMAT}")
    try:
        checkpoint = Checkpoint.parse(verified(told.checkpoint, key))
    except NoteError as fault:
        raise ProofError(f"its checkpoint does not hold: {fault}") from None
    except UnicodeEncodeError:
        raise ProofError("its checkpoint is no text") from None
    if checkpoint.origin != key.name:
        raise ProofError(f"its checkpoint is not of {key.name}")
    if not told.records:
        raise ProofError("it proves no record")
    return [_checked(row, number, checkpoint) for number, row in enumerate(told.records, 1)]


def _checked(row: _Row, number: int, checkpoint: Checkpoint) -> Proved:
    if (row.record is None) is (row.record_base64 is None):
        raise ProofError(f"record {number} is not there once: either `record` or `record_base64` is expected")
    try:
        record = base64.b64decode(row.record_base64 or "", validate=True) if row.record is None else row.record.encode()
        proof = [bytes.fromhex(step) for step in row.proof]
    except (UnicodeEncodeError, binascii.Error, ValueError):
        raise ProofError(f"record {number} or its proof is not written as it should be") from None
    if any(len(step) != HASH_BYTES for step in proof):
        raise ProofError(f"the proof of record {number} is no list of hashes")
    if not included(chained(record), row.place, checkpoint.size, proof, checkpoint.root):
        raise ProofError(f"record {number} is not at place {row.place} of the sealed trail, or its proof is of another record")
    return Proved(row.place, record)


def _row(place: int, record: bytes, proof: Sequence[bytes]) -> _Row:
    steps = [step.hex() for step in proof]
    try:
        return _Row(place, steps, record=record.decode())
    except UnicodeDecodeError:
        return _Row(place, steps, record_base64=base64.b64encode(record).decode())


def _records(folder: Path, places: Collection[int]) -> Iterator[tuple[int, bytes]]:
    last = max(places)
    for (first, path), (following, _) in pairwise([*segments(folder), (last + 1, folder)]):
        here = {place for place in places if first <= place < following}
        if here:
            yield from ((place, line) for place, line in enumerate(lines(path), first) if place in here)
