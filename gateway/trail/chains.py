"""Whether the chains of a trail's writers are whole: each record names the one before it, and each call has one end.

Told by the records alone, in any order in which writers are mixed; of a record that is in its place nothing is kept.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Final

import msgspec

from gateway.audit import rfc3339, unix_seconds
from gateway.trail.archive import split_hashes
from gateway.trail.findings import Findings, name_of, shown
from gateway.trail.note import Checkpoint
from gateway.trail.prove import Leaves

SILENT_SECONDS: Final = 300
"""A writer that has not closed writes every 30 s; one that did not for so long before the checkpoint has died."""


class Link(msgspec.Struct, gc=False):
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


_decode_link = msgspec.json.Decoder(Link).decode
_decode_removal = msgspec.json.Decoder(_Removal).decode
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
class Chains:
    """The writers' chains as they come by. Holds nothing of a record that is in its place and has its counterpart."""

    told: Findings
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
            links: list[Link | None] = [_decode_link(line) for line in lines]
        except _UNREADABLE:
            links = [read_link(line) for line in lines]
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

    def _remark(self, link: Link, line: bytes, row: int) -> None:
        if link.stage == "open":
            self.serving.add(link.writer)
            return
        self.changes.add(f"{link.writer}-{link.seq}")
        if link.change == "trail.removed":
            self.removed(line, row)

    def _closed_again(self, intent: str, row: int) -> None:
        self.told.add("altered", f"{self.line(row)}: {shown(intent)} has an end already, and this is another", row)

    def removed(self, line: bytes, row: int) -> None:
        """Take the record of a removal."""
        try:
            self.removals.append((_decode_removal(line), row))
        except _UNREADABLE:
            self.told.add("altered", f"{self.line(row)}: it does not say what was removed", row)

    def _insert(self, link: Link, hashed: bytes, row: int) -> _Run | None:
        """Put a record that does not continue its writer's newest run where it belongs; None: it is there already."""
        self.begins = self.begins or link.at
        runs = self.runs.setdefault(link.writer, [])
        place = bisect_right(runs, link.seq, key=lambda run: run.first)
        run = runs[place - 1] if place else None
        if run is not None and link.seq < run.next:
            self.again.append((name_of(link.writer, link.seq), hashed, row))
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
        before = name_of(writer, seq - 1) if seq else "nothing"
        text = f"{self.line(row)} ({name_of(writer, seq)}): it does not name {before} as the record before it"
        self.told.add("altered", text, row)

    def judge(self, leaves: Leaves, size: int, unread: Sequence[tuple[int, int]]) -> None:
        """Tell what does not hold together. `unread`: from where to where the records could not be read, or were not to be."""
        loose = list(self._loose())
        passed = _count(leaves, unread, {_unhex(run.prev) for _, _, run in loose})
        for writer, missing, run in loose:
            # What is named may be anything but a record that was read: that one has another number.
            if not passed[_unhex(run.prev)]:
                names = name_of(writer, run.first), name_of(writer, missing)
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
                text = f"{shown(writer)} was sealed up to {name_of(writer, tip)}, and the trail has it"
                self.told.add("incomplete", f"{text} up to {name_of(writer, reached)}" if reached >= 0 else f"{text} not at all")
            elif self.begins < alive:
                self.told.add("incomplete", f"{shown(writer)} fell silent before {shown(self.begins)}: was it recovered?")
        for writer in sorted(self.serving | checkpoint.tips.keys() & self.runs.keys()):
            newest = self.runs[writer][-1]
            if newest.stage != "close" and newest.at < alive:
                text = f"{shown(writer)} fell silent at {shown(newest.at)}, after {name_of(writer, newest.next - 1)}"
                self.told.add("incomplete", f"{text}: was it recovered?")
        for intent, row in self.opened.items():
            writer = intent.rpartition("-")[0]
            if self.runs[writer][-1].stage == "close":
                text = f"{self.line(row)} ({shown(intent)}): the call has no end, and its writer has closed"
                self.told.add("incomplete", text, row)


def read_link(line: bytes) -> Link | None:
    """Return what ties a record to others; None: it is no record."""
    try:
        return _decode_link(line)
    except _UNREADABLE:
        return None


def _count(leaves: Leaves, ranges: Iterable[tuple[int, int]], wanted: set[bytes]) -> Counter[bytes]:
    """Return how often each of these is among the leaves of some ranges."""
    found: Counter[bytes] = Counter()
    for start, end in ranges if wanted else ():
        for chunk in leaves.chunks(end, start):
            found.update(leaf for leaf in split_hashes(chunk) if leaf in wanted)
    return found


def _unhex(name: str) -> bytes:
    try:
        return bytes.fromhex(name)
    except ValueError:
        return b""
