"""Whether a sealed trail is what its sealer signed: no record altered, none taken away, and no writer's chain torn.

Needs the archive's folder and the sealer's public key, and nothing of the gateway: neither Redis nor a secret. It believes
the signature alone; of the archive it reads the checkpoint, the hashes and the segments, not its state nor its index.

The signature gives the root; the root says whether the file of hashes is right; where it is, each line is held against its
own hash, so that the row at fault has a name. Where it is not, the root is computed from the lines instead. One SHA-256 of
a record is both its leaf in the tree and what the next record of its writer names.

Everything read is taken for hostile: what cannot be read becomes a finding, never an exception.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

from gateway.audit import rfc3339
from gateway.trail.archive import CHECKPOINT, HASHES, open_hashes, segment_name, segments, split_hashes
from gateway.trail.chains import Chains, read_link
from gateway.trail.findings import KEPT, Finding, Findings, Kind, name_of, shown
from gateway.trail.merkle import Tree
from gateway.trail.note import Checkpoint, NoteError, PublicKey, verified
from gateway.trail.prove import Leaves

LATE_SECONDS: Final = 86_400
"""How much later than it was written a record may be sealed and still be found by `since`."""

_BLOCK_BYTES: Final = 1 << 20
_LINE_BYTES_MAX: Final = 1 << 20
_NOTE_BYTES_MAX: Final = 1 << 24
_NEAR: Final = 100
"""How many lines on a record is looked for where lines were put in or taken out."""

_STATUS: Final[dict[Kind, int]] = {"altered": 1, "incomplete": 2}
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a review found."""

    findings: tuple[Finding, ...]
    """Altered before incomplete before notes, the first row first; at most `KEPT` of each."""
    counts: dict[Kind, int]
    """How many there are, also of those not kept."""
    records: int
    """Sealed records that were read."""
    writers: int
    checkpoint: Checkpoint | None
    """What the sealer signed; None where there is none that holds."""

    @property
    def status(self) -> int:
        """0 sound, 1 altered, 2 incomplete; a trail that is both is altered."""
        return next((status for kind, status in _STATUS.items() if self.counts[kind]), 0)


def verify(
    folder: Path, key: PublicKey, *, older: str | None = None, since: float | None = None, progress: Progress | None = None
) -> Report:
    """Return whether an archive is what the holder of this key sealed.

    `older` is a checkpoint note kept from before: the trail must have only been added to since. `since` (Unix seconds)
    leaves out the segments that were full before, where the hashes are right: these are then all that is checked of them.
    `progress` is told how many records of how many are done. Records behind the checkpoint are counted and not looked at: a
    sealer may be writing them.
    """
    with ExitStack() as files:
        return _Review(folder, key, files).report(older, since, progress)


class _Part(NamedTuple):
    """A segment, and the places of the records that belong in it."""

    first: int
    end: int
    path: Path

    def line(self, row: int) -> str:
        return f"{self.path.name} line {row - self.first + 1}"


class _Review:
    """One reading of an archive."""

    def __init__(self, folder: Path, key: PublicKey, files: ExitStack) -> None:
        self.folder = folder
        self.key = key
        self.told = Findings()
        self.checkpoint = self._checkpoint()
        self.leaves = files.enter_context(self._leaves())
        self.size = self.leaves.size if self.checkpoint is None else self.checkpoint.size
        self.parts: list[_Part] = []
        self.chains = Chains(self.told, self._line)
        self.records = self.unsealed = 0
        self.unread: list[tuple[int, int]] = []
        """From which place to which no record was read."""
        self.tree = Tree()
        self.differ: list[tuple[int, bytes]] = []
        """The first rows whose hash is another than the file of hashes says, where that file is not right."""
        self.differing = 0
        self.trusted = False
        """Whether the file of hashes is what was signed."""

    def report(self, older: str | None, since: float | None, progress: Progress | None) -> Report:
        try:
            self._review(older, since, progress)
        except OSError as fault:
            self.told.add("incomplete", f"{shown(str(self.folder))} cannot be read: {fault.strerror}")
        return Report(
            findings=self.told.told(),
            counts=self.told.counts,
            records=self.records,
            writers=len(self.chains.runs),
            checkpoint=self.checkpoint,
        )

    def _review(self, older: str | None, since: float | None, progress: Progress | None) -> None:
        self.parts = self._parts()
        root = self.leaves.root(self.size) if self.leaves.size >= self.size else b""
        self.trusted = self.checkpoint is not None and root == self.checkpoint.root
        if older is not None:
            self._compare_older(older)
        begin = self._begin(since) if since is not None and self.trusted else 0
        first = min(self.parts[0].first, self.size) if self.parts else self.size
        if self.parts:
            self._pass(0, self.parts[begin].first)
        if not self.trusted:
            for chunk in self.leaves.chunks(first):
                self.tree.extend(split_hashes(chunk))
        for part in self.parts[begin:]:
            self._read(part, progress)
        if not self.trusted:
            self._judge_root()
        if first > 0:
            self._judge_removed(first, begin)
        self.chains.judge(self.leaves, self.size, self.unread)
        if self.checkpoint is not None:
            self.chains.judge_ends(self.checkpoint, partial=begin > 0 or (bool(self.parts) and first > 0))
        if self.unsealed:
            self.told.add("note", f"{self.unsealed} records came after the checkpoint: they are not sealed yet")

    def _checkpoint(self) -> Checkpoint | None:
        try:
            with _regular(self.folder / CHECKPOINT).open("rb") as file:
                return self._signed(file.read(_NOTE_BYTES_MAX).decode())
        except OSError as fault:
            self.told.add("incomplete", f"{CHECKPOINT} cannot be read: {fault.strerror}")
        except (NoteError, UnicodeError) as fault:
            self.told.add("altered", f"{CHECKPOINT} does not hold: {fault if isinstance(fault, NoteError) else 'it is no text'}")
        return None

    def _signed(self, note: str) -> Checkpoint:
        found = Checkpoint.parse(verified(note, self.key))
        if found.origin != self.key.name:
            raise NoteError(f"it is not of {self.key.name}")
        return found

    def _leaves(self) -> Leaves:
        try:
            _regular(self.folder / HASHES)
            return Leaves(open_hashes(self.folder))
        except OSError as fault:
            self.told.add("incomplete", f"{HASHES} cannot be read: {fault.strerror}")
            return Leaves(Path(os.devnull).open("rb"))

    def _parts(self) -> list[_Part]:
        found = [(first, path) for first, path in segments(self.folder) if path.name == segment_name(first) and path.is_file()]
        ends = [first for first, _ in found[1:]] + [self.size]
        return [_Part(first, min(end, self.size), path) for (first, path), end in zip(found, ends, strict=False)]

    def _line(self, row: int) -> str:
        place = bisect_right(self.parts, row, key=lambda part: part.first)
        return self.parts[place - 1].line(row)

    def _compare_older(self, note: str) -> None:
        try:
            older = self._signed(note)
        except (NoteError, UnicodeError) as fault:
            reason = fault if isinstance(fault, NoteError) else "it is no text"
            self.told.add("altered", f"the older checkpoint does not hold: {reason}")
            return
        newest = self.checkpoint
        if newest is None:
            return
        if older.size > newest.size or older.at > newest.at:
            text = (
                f"the checkpoint, of {newest.size} records at {newest.at}, is older than the one that was kept, of {older.size}"
            )
            self.told.add("incomplete", f"{text} at {older.at}: it was put back")
        elif not self.trusted:
            self.told.add("note", f"the older checkpoint cannot be compared while {HASHES} is not right")
        elif self.leaves.root(older.size) != older.root:
            self.told.add("altered", f"the first {older.size} records are not those that were signed at {older.at}")

    def _begin(self, since: float) -> int:
        """Return which part to begin with: behind the ones that were full before `since`.

        Told by the newest of the first records of the part after them; some late ones among them do no harm.
        """
        before = rfc3339(since - LATE_SECONDS)
        for number in range(len(self.parts) - 1, 0, -1):
            part = self.parts[number]
            lines = _first_block(part.path)[: max(0, part.end - part.first)]
            if b"".join(_hashed(lines)) == self.leaves.packed(part.first, part.first + len(lines)):
                links = [link for line in lines if (link := read_link(line)) is not None]
                if links and max(link.at for link in links) < before:
                    return number
        return 0

    def _read(self, part: _Part, progress: Progress | None) -> None:
        """Hold the lines of a segment against their hashes, and follow the chains in it."""
        place = row = part.first
        more, torn = 0, False
        take = self._compare if self.trusted else self._collect
        try:
            for lines, rest in _blocks(part.path):
                if place < part.end:
                    place, taken = take(part, place, row, lines)
                    more += len(lines) - taken
                    row += taken
                else:
                    more += len(lines)
                torn = bool(rest)
                if progress is not None:
                    progress(place, self.size)
        except OSError as fault:
            self.told.add("incomplete", f"{part.path.name} cannot be read: {fault.strerror}", row)
        if place < part.end:
            text = f"{part.line(row)}: {'it is torn, and ' if torn else ''}from here on {_places(place, part.end)} missing"
            self.told.add("incomplete", text, row)
            self._pass(place, part.end)
        if part.end == self.size or part.first >= self.size:
            self.unsealed += more
        elif more or (torn and place == part.end):
            self.told.add("altered", f"{part.line(row)}: from here on nothing belongs into the segment", row)

    def _compare(self, part: _Part, place: int, row: int, lines: Sequence[bytes]) -> tuple[int, int]:
        """Hold lines against the signed hashes; return the place reached, and how many lines belong to places before it."""
        lines_here = lines[: part.end - place]
        hashes = _hashed(lines_here)
        if b"".join(hashes) == self.leaves.packed(place, place + len(hashes)):
            self.chains.follow(row, lines_here, hashes)
            self.records += len(hashes)
            return place + len(hashes), len(hashes)
        hashes = _hashed(lines)
        first, signed = place, list[bytes]()
        for number, (line, hashed) in enumerate(zip(lines, hashes, strict=True)):
            if place == part.end:
                return place, number
            if place - first + _NEAR >= len(signed):
                first, signed = place, split_hashes(self.leaves.packed(place, min(place + len(lines) + _NEAR, part.end)))
            self.records += 1
            # 1. It is the record that is due.
            # 2. It is due a little later: the records before it are missing.
            # 3. What is due is on a line a little later: this one was put in.
            # 4. Otherwise it stands for the record that is due, and is another.
            here = place - first
            due, ahead = signed[here], signed[here + 1 : here + 1 + _NEAR]
            name = f"{part.line(row + number)}{_named(line)}"
            if hashed == due or hashed in ahead:
                if hashed != due:
                    following = place + 1 + ahead.index(hashed)
                    self.told.add("incomplete", f"{name}: before it, {_places(place, following)} missing", row + number)
                    self._pass(place, following)
                    place = following
                self.chains.follow(row + number, [line], [hashed])
                place += 1
            elif due in hashes[number + 1 : number + 1 + _NEAR]:
                self.told.add("altered", f"{name}: it was not sealed, or not here", row + number)
            else:
                self.told.add("altered", f"{name}: it is not the record that was sealed", row + number)
                self._pass(place, place + 1)
                place += 1
        return place, len(lines)

    def _pass(self, start: int, end: int) -> None:
        """Keep in mind that the records of some places were not read."""
        if self.unread and self.unread[-1][1] == start:
            start, _ = self.unread.pop()
        self.unread.append((start, end))

    def _collect(self, part: _Part, place: int, row: int, lines: Sequence[bytes]) -> tuple[int, int]:
        """Take lines as they are, and keep what their root is; return the same as `_compare`."""
        lines = lines[: part.end - place]
        hashes = _hashed(lines)
        if place == self.tree.size:
            self.tree.extend(hashes)
        known = self.leaves.packed(place, place + len(lines))
        if b"".join(hashes)[: len(known)] != known:
            odd = [n for n, (hashed, leaf) in enumerate(zip(hashes, split_hashes(known), strict=False)) if hashed != leaf]
            self.differing += len(odd)
            self.differ += [(row + n, lines[n]) for n in odd[: KEPT - len(self.differ)]]
        self.chains.follow(row, lines, hashes)
        self.records += len(lines)
        return place + len(lines), len(lines)

    def _judge_root(self) -> None:
        """Tell whether the records are what was signed, where the file of hashes is not."""
        whole, ends = self.tree.size == self.size, f"{HASHES} ends after {self.leaves.size} of {self.size} records"
        short = self.leaves.size < self.size
        if self.checkpoint is not None and whole and self.tree.root == self.checkpoint.root:
            text = ends if short else f"{HASHES} is damaged"
            if self.differ:
                text += f", {self.differing} in it are wrong, the first that of {self._line(self.differ[0][0])}"
            kind: Kind = "incomplete" if short and not self.differ else "altered"
            self.told.add(kind, f"{text}; the records are what was signed")
            return
        for row, line in self.differ:
            self.told.add("altered", f"{self._line(row)}{_named(line)}: it is not the record that {HASHES} tells", row)
        if self.checkpoint is None:
            return
        if whole or not short:
            self.told.add("altered", f"neither the records nor {HASHES} are what was signed: both were written anew")
        else:
            self.told.add("incomplete", f"{ends}, and some of those are missing")

    def _judge_removed(self, first: int, begin: int) -> None:
        """Tell of records missing before place `first`, unless the trail says that they were removed."""
        for part in self.parts[:begin]:
            self._find_removals(part)
        said = 0
        for removal, row in self.chains.removals:
            after = int(removal.after) if removal.after.isdecimal() and len(removal.after) < 20 else -1
            if not 0 <= after <= self.size:
                self.told.add("altered", f"{self._line(row)}: it does not say what was removed", row)
            elif self.trusted and self.leaves.root(after).hex() != removal.subject:
                self.told.add("altered", f"{self._line(row)}: what it says was removed is not what was sealed", row)
            else:
                said = max(said, after)
        if said < first:
            self.told.add("incomplete", f"{_places(said, first)} missing, and the trail does not say that they were removed")

    def _find_removals(self, part: _Part) -> None:
        place = part.first
        for lines, _ in _blocks(part.path):
            for number, line in enumerate(lines, place):
                if b'"trail.removed"' in line and _hashed([line])[0] == self.leaves.packed(number, number + 1):
                    self.chains.removed(line, number)
            place += len(lines)


def _blocks(path: Path) -> Iterator[tuple[list[bytes], bytes]]:
    """Yield the lines of a file without their newlines, many at a time; with the last of them, what has no newline."""
    rest = b""
    with path.open("rb", buffering=0) as file:
        while data := file.read(_BLOCK_BYTES):
            lines = (rest + data).split(b"\n")
            rest = lines.pop()
            if len(rest) > _LINE_BYTES_MAX:
                yield lines, rest
                return
            yield lines, b""
    if rest:
        yield [], rest


def _regular(path: Path) -> Path:
    """Return a path that can be opened without waiting for ever. Raises: OSError."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no file")
    return path


def _first_block(path: Path) -> list[bytes]:
    try:
        return next(_blocks(path), ([], b""))[0]
    except OSError:
        return []


def _hashed(lines: Sequence[bytes]) -> list[bytes]:
    """`audit.chained` of many, without a call for each."""
    return [sha256(b"\x00" + line).digest() for line in lines]


def _named(line: bytes) -> str:
    link = read_link(line)
    return f" ({name_of(link.writer, link.seq)})" if link else ""


def _places(first: int, end: int) -> str:
    return f"record {first} is" if end == first + 1 else f"records {first} to {end - 1} are"
