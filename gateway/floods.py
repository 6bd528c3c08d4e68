"""Floods of refusals: the first of each kind in a second are recorded one by one, the rest as one record with their number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from gateway.audit import Record

ONE_BY_ONE: Final = 100
"""Refusals of one kind that are recorded by themselves in a second."""
_SECOND: Final = 1.0
_KINDS_MAX: Final = 1000

_Kind = tuple[str | None, ...]


@dataclass(slots=True)
class _Second:
    began: float
    seen: int = 0
    record: Record | None = None
    """The first that was not recorded by itself; counts the others."""


@dataclass(slots=True)
class Floods:
    """Tells which refusals go by by themselves, of one writer."""

    _kinds: dict[_Kind, _Second] = field(default_factory=dict)

    def swallow(self, record: Record, now: float, *, always: bool = False) -> bool:
        """Say whether a record was taken into a sum. What closes an intent never is. `now`: seconds of any clock that runs on.

        `always`: nothing can be recorded by itself now.
        """
        if record.stage != "refusal" or record.intent is not None:
            return False
        kind = self._kind(record)
        found = self._kinds.get(kind)
        if found is None:
            found = self._kinds[kind] = _Second(now)
        found.seen += 1
        if not always and found.record is None and found.seen <= ONE_BY_ONE:
            return False
        if found.record is None:
            found.record = record
        else:
            found.record.count += 1
        return True

    def over(self, now: float, *, at_once: bool = False) -> Iterator[Record]:
        """Yield the sums of the seconds that are over, or of all; each once."""
        for kind, found in list(self._kinds.items()):
            if at_once or now - found.began >= _SECOND:
                del self._kinds[kind]
                if found.record is not None:
                    yield found.record

    def _kind(self, record: Record) -> _Kind:
        kind = (record.problem, record.service, record.source)
        # Who sends from ever new addresses must not fill the memory.
        return kind if kind in self._kinds or len(self._kinds) < _KINDS_MAX else (record.problem, None, None)
