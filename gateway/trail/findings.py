"""What a review of a trail found: how much of each kind, and the first of it, in the order of its rows."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass
from typing import Final, Literal

KEPT: Final = 100
"""Findings of one kind that are told; all are counted."""

Kind = Literal["altered", "incomplete", "note"]
"""`altered`: it is not what was written; `incomplete`: something is missing; `note`: nothing is wrong with it."""
KINDS: Final[tuple[Kind, ...]] = ("altered", "incomplete", "note")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a reviewer should know."""

    kind: Kind
    message: str
    """One line."""
    row: int | None = None
    """Of a line: the place its segment begins at, plus the lines before it. None: it is of no one line."""

    @property
    def order(self) -> tuple[bool, int]:
        """By row; what has none comes last."""
        return (self.row is None, self.row or 0)


class Findings:
    """What was found so far."""

    def __init__(self) -> None:
        self.counts: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        """Also of those not kept."""
        self._kept: dict[Kind, list[Finding]] = {kind: [] for kind in KINDS}

    def add(self, kind: Kind, message: str, row: int | None = None) -> None:
        """Take one more; `message` is one line."""
        self.counts[kind] += 1
        kept = self._kept[kind]
        insort(kept, Finding(kind, message, row), key=lambda finding: finding.order)
        del kept[KEPT:]

    def told(self) -> tuple[Finding, ...]:
        """Return those that are kept, kind after kind, each by row."""
        return tuple(finding for kept in self._kept.values() for finding in kept)


def name_of(writer: str, seq: int) -> str:
    """Return what a record is called, fit for one line of a terminal."""
    return f"{shown(writer)}-{seq}"


def shown(text: str) -> str:
    """Return what a record or a path says, fit for one line of a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text[:80])
