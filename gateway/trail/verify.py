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
from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

import msgspec

from gateway.audit import rfc3339, unix_seconds
from gateway.trail.archive import CHECKPOINT, HASH_BYTES, HASHES, open_hashes, segment_name, segments
from gateway.trail.merkle import Tree
from gateway.trail.note import Checkpoint, NoteError, PublicKey, verified
from gateway.trail.prove import Leaves

SILENT_SECONDS: Final = 300
"""A writer that has not closed writes every 30 s; one that did not for so long before the checkpoint has died."""

LATE_SECONDS: Final = 86_400
"""How much later than it was written a record may be sealed and still be found by `since`."""

KEPT: Final = 100
"""Findings of one kind that are told; all are counted."""

_BLOCK_BYTES: Final = 1 << 20
_LINE_BYTES_MAX: Final = 1 << 20
_NOTE_BYTES_MAX: Final = 1 << 24
_NEAR: Final = 100
"""How many lines on a record is looked for where lines were put in or taken out."""

Kind = Literal["altered", "incomplete", "note"]
_STATUS: Final[dict[Kind, int]] = {"altered": 1, "incomplete": 2, "note": 0}
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a reviewer should know."""

    kind: Kind
    """`altered`: it is not what was written; `incomplete`: something is missing; `note`: nothing is wrong with it."""
    message: str
    """One line."""
    row: int | None = None
    """Of a line: the place its segment begins at, plus the lines before it. None: it is of no one line."""

    @property
    def order(self) -> tuple[bool, int]:
        """By row; what has none comes last."""
        return (self.row is None, self.row or 0)


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
        return next((_STATUS[kind] for kind in _STATUS if kind != "note" and self.counts[kind]), 0)


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


class _Findings:
    def __init__(self) -> None:
        self.counts: dict[Kind, int] = dict.fromkeys(_STATUS, 0)
        self._kept: dict[Kind, list[Finding]] = {kind: [] for kind in _STATUS}

    def add(self, kind: Kind, message: str, row: int | None = None) -> None:
        self.counts[kind] += 1
        kept = self._kept[kind]
        insort(kept, Finding(kind, message, row), key=lambda finding: finding.order)
        del kept[KEPT:]

    def told(self) -> tuple[Finding, ...]:
        return tuple(finding for kept in self._kept.values() for finding in kept)


class _Part(NamedTuple):
    """A segment, and the places of the records that belong in it."""

    first: int
    end: int
    path: Path

    def line(self, row: int) -> str:
        return f"{self.path.name} line {row - self.first + 1}"


class _Link(msgspec.Struct, gc=False):
    """What of a record ties it to others. Decoding is a third of the work: no field more than is needed."""

    stage: str
    writer: str
    seq: Annotated[int, msgspec.Meta(ge=0)]
    at: str
    prev: str = ""
    intent: str | None = None
    change: str | None = None


class _Removal(msgspec.Struct):
    after: str = ""
    subject: str = ""


_read_link = msgspec.json.Decoder(_Link).decode
_read_removal = msgspec.json.Decoder(_Removal).decode
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


@dataclass(slots=True)
class _Run:
    """Records of one writer that follow on one another."""

    first: int
    prev: str
    """What the first of them names, in hexadecimal."""
    row: int
    next: int = 0
    last: str = ""
    """`audit.chained` of the last of them, in hexadecimal."""
    at: str = ""
    stage: str = ""


@dataclass(slots=True)
class _Chains:
    """The writers' chains as they come by. Holds nothing of a record that is in its place and has its counterpart."""

    told: _Findings
    line: Callable[[int], str]
    runs: dict[str, list[_Run]] = field(default_factory=dict)
    """Of each writer, in order; one, unless records are missing or came late."""
    newest: dict[str, _Run] = field(default_factory=dict)
    """The last of `runs`, which nearly every record continues."""
    serving: set[str] = field(default_factory=set)
    """Writers that opened, and so have to close; the others are commands."""
    opened: dict[str, int] = field(default_factory=dict)
    """Rows of intents that nothing has closed."""
    closed: dict[str, int] = field(default_factory=dict)
    """Rows that close an intent that is not open: what one process writes of another's may be sealed first."""
    changes: set[str] = field(default_factory=set)
    """Records of changes: what closes one tells that it was not made."""
    again: list[tuple[str, bytes, int]] = field(default_factory=list)
    """Records under an identity that came by before: name, hash and row."""
    removals: list[tuple[_Removal, int]] = field(default_factory=list)
    begins: str = ""
    """When the first record was written."""

    def follow(self, row: int, lines: Sequence[bytes], hashes: Sequence[bytes]) -> None:  # noqa: C901  a call costs a tenth
        """Take the records of rows that come one after another."""
        newest, opened, closed = self.newest, self.opened, self.closed
        try:
            links: list[_Link | None] = [_read_link(line) for line in lines]
        except _UNREADABLE:
            links = [_link(line) for line in lines]
        for number, (link, hashed) in enumerate(zip(links, hashes, strict=True)):
            if link is None:
                self.told.add("altered", f"{self.line(row + number)}: it is no record", row + number)
                continue
            run = newest.get(link.writer)
            if run is not None and link.seq == run.next and link.prev == run.last:
                run.next += 1
                run.last = hashed.hex()
            else:
                run = self._insert(link, hashed, row + number)
                if run is None:
                    continue
            run.at, run.stage = link.at, link.stage
            if link.stage == "intent":
                name = f"{link.writer}-{link.seq}"
                if closed.pop(name, None) is None:
                    opened[name] = row + number
            elif link.intent is not None:
                if opened.pop(link.intent, None) is None and closed.setdefault(link.intent, row + number) != row + number:
                    self._closed_again(link.intent, row + number)
            elif link.stage in ("open", "change"):
                self._remark(link, lines[number], row + number)

    def _remark(self, link: _Link, line: bytes, row: int) -> None:
        if link.stage == "open":
            self.serving.add(link.writer)
            return
        self.changes.add(f"{link.writer}-{link.seq}")
        if link.change == "trail.removed":
            self.removed(line, row)

    def _closed_again(self, intent: str, row: int) -> None:
        self.told.add("altered", f"{self.line(row)}: {_shown(intent)} has an end already, and this is another", row)

    def removed(self, line: bytes, row: int) -> None:
        """Take the record of a removal."""
        try:
            self.removals.append((_read_removal(line), row))
        except _UNREADABLE:
            self.told.add("altered", f"{self.line(row)}: it does not say what was removed", row)

    def _insert(self, link: _Link, hashed: bytes, row: int) -> _Run | None:
        """Put a record that does not continue its writer's newest run where it belongs; None: it is there already."""
        self.begins = self.begins or link.at
        runs = self.runs.setdefault(link.writer, [])
        place = bisect_right(runs, link.seq, key=lambda run: run.first)
        run = runs[place - 1] if place else None
        if run is not None and link.seq < run.next:
            self.again.append((_name(link.writer, link.seq), hashed, row))
            return None
        if run is None or link.seq != run.next:
            run = _Run(link.seq, link.prev, row)
            runs.insert(place, run)
            self.newest[link.writer] = runs[-1]
        elif link.prev != run.last:
            self._torn(link.writer, run.next, row)
        run.next, run.last = link.seq + 1, hashed.hex()
        return run

    def _torn(self, writer: str, seq: int, row: int) -> None:
        before = _name(writer, seq - 1) if seq else "nothing"
        text = f"{self.line(row)} ({_name(writer, seq)}): it does not name {before} as the record before it"
        self.told.add("altered", text, row)

    def judge(self, leaves: Leaves, size: int, unread: Sequence[tuple[int, int]]) -> None:
        """Tell what does not hold together. `unread`: from where to where the records could not be read, or were not to be."""
        loose = list(self._loose())
        passed = _count(leaves, unread, {_unhex(run.prev) for _, _, run in loose})
        for writer, missing, run in loose:
            # What is named may be anything but a record that was read: that one has another number.
            if not passed[_unhex(run.prev)]:
                names = _name(writer, run.first), _name(writer, missing)
                text = f"{self.line(run.row)} ({names[0]}): the records before it, from {names[1]} on, are missing"
                self.told.add("incomplete", text, run.row)
        # A copy has the hash of a record that is in its chain; another record under the same name has one of its own.
        copies = Counter(hashed for _, hashed, _ in self.again)
        sealed = _count(leaves, [(0, size)], set(copies))
        for intent, row in self.closed.items():
            if intent not in self.changes and self._came_by(intent):
                self._closed_again(intent, row)
        for name, hashed, row in self.again:
            if not sealed[hashed]:
                self.told.add("note", f"{self.line(row)} ({name}): it stands here twice, and has no hash to compare", row)
            elif sealed[hashed] <= copies[hashed]:
                self.told.add("altered", f"{self.line(row)} ({name}): another record was written under this name", row)

    def _came_by(self, name: str) -> bool:
        writer, _, number = name.rpartition("-")
        return number.isdecimal() and any(run.first <= int(number) < run.next for run in self.runs.get(writer, ()))

    def _loose(self) -> Iterator[tuple[str, int, _Run]]:
        """Yield the runs that follow on nothing that was read, each with its writer and the first number that is missing."""
        for writer, runs in self.runs.items():
            reached, last = 0, ""
            for run in runs:
                if run.first != reached:
                    yield writer, reached, run
                elif run.prev != last:
                    self._torn(writer, run.first, run.row)
                reached, last = run.next, run.last

    def judge_ends(self, checkpoint: Checkpoint, partial: bool) -> None:
        """Tell of writers that do not reach their tip or fell silent, and of calls that nobody ended."""
        try:
            alive = rfc3339(unix_seconds(checkpoint.at) - SILENT_SECONDS)
        except (ValueError, OverflowError):
            self.told.add("incomplete", "the checkpoint does not say when it was signed: nobody can tell who fell silent")
            alive = ""
        for writer, tip in checkpoint.tips.items():
            reached = self.runs[writer][-1].next - 1 if writer in self.runs else -1
            if reached >= tip:
                continue
            if not partial:
                text = f"{_shown(writer)} was sealed up to {_name(writer, tip)}, and the trail has it"
                self.told.add("incomplete", f"{text} up to {_name(writer, reached)}" if reached >= 0 else f"{text} not at all")
            elif self.begins < alive:
                self.told.add("incomplete", f"{_shown(writer)} fell silent before {_shown(self.begins)}: was it recovered?")
        for writer in sorted(self.serving | checkpoint.tips.keys() & self.runs.keys()):
            newest = self.runs[writer][-1]
            if newest.stage != "close" and newest.at < alive:
                text = f"{_shown(writer)} fell silent at {_shown(newest.at)}, after {_name(writer, newest.next - 1)}"
                self.told.add("incomplete", f"{text}: was it recovered?")
        for intent, row in self.opened.items():
            writer = intent.rpartition("-")[0]
            if self.runs[writer][-1].stage == "close":
                text = f"{self.line(row)} ({_shown(intent)}): the call has no end, and its writer has closed"
                self.told.add("incomplete", text, row)


class _Review:
    """One reading of an archive."""

    def __init__(self, folder: Path, key: PublicKey, files: ExitStack) -> None:
        self.folder = folder
        self.key = key
        self.told = _Findings()
        self.checkpoint = self._checkpoint()
        self.leaves = files.enter_context(self._leaves())
        self.size = self.leaves.size if self.checkpoint is None else self.checkpoint.size
        self.parts: list[_Part] = []
        self.chains = _Chains(self.told, self._line)
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
            self.told.add("incomplete", f"{_shown(str(self.folder))} cannot be read: {fault.strerror}")
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
                self.tree.extend(_split(chunk))
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
                links = [link for line in lines if (link := _link(line)) is not None]
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
                first, signed = place, _split(self.leaves.packed(place, min(place + len(lines) + _NEAR, part.end)))
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
            odd = [n for n, (hashed, leaf) in enumerate(zip(hashes, _split(known), strict=False)) if hashed != leaf]
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


def _split(packed: bytes) -> list[bytes]:
    return [packed[start : start + HASH_BYTES] for start in range(0, len(packed), HASH_BYTES)]


def _count(leaves: Leaves, ranges: Iterable[tuple[int, int]], wanted: set[bytes]) -> Counter[bytes]:
    """Return how often each of these is among the leaves of some ranges."""
    found: Counter[bytes] = Counter()
    for start, end in ranges if wanted else ():
        for chunk in leaves.chunks(end, start):
            found.update(leaf for leaf in _split(chunk) if leaf in wanted)
    return found


def _link(line: bytes) -> _Link | None:
    try:
        return _read_link(line)
    except _UNREADABLE:
        return None


def _named(line: bytes) -> str:
    link = _link(line)
    return f" ({_name(link.writer, link.seq)})" if link else ""


def _name(writer: str, seq: int) -> str:
    return f"{_shown(writer)}-{seq}"


def _shown(text: str) -> str:
    """What a record says of itself, fit for one line of a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text[:80])


def _places(first: int, end: int) -> str:
    return f"record {first} is" if end == first + 1 else f"records {first} to {end - 1} are"


def _unhex(name: str) -> bytes:
    try:
        return bytes.fromhex(name)
    except ValueError:
        return b""
