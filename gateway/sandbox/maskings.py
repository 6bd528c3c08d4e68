"""The vendor's state: a pool of virtual numbers and the maskings that use them, with an end that really comes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

_DEFAULT_MINUTES: Final = 1440
_COUNTRY: Final = "91"
_DIGITS: Final = re.compile(r"[0-9]{7,15}")


class Rejected(Exception):
    """The vendor says no, with one of its codes."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass(slots=True)
class Masking:
    """One virtual number between two parties."""

    mask: str
    m1: str
    m2: str
    ends_at: float
    """Unix seconds of the sandbox's clock."""


@dataclass(frozen=True, slots=True)
class Unknowns:
    """What the vendor does not document, as the sandbox is told to behave."""

    duration_zero: str = "end"
    """`end`, `ignore` (nothing changes) or `refuse` (1502)."""
    both_expiry_fields: str = "duration"
    """Which one wins: `duration` or `time`."""
    several: str = "all"
    """When m1 or m2 alone fits several maskings: `all` change, or `refuse` (1000)."""


class Maskings:
    """Every masking of one account."""

    def __init__(self, pool: int, clock: Callable[[], float], default_country: str = _COUNTRY) -> None:
        """`pool` virtual numbers can be in use at once."""
        self._free = [f"{default_country}80{number:08d}" for number in range(pool, 0, -1)]
        self._live: dict[str, Masking] = {}
        self._clock = clock
        self._country = default_country

    def listed(self) -> list[dict[str, Any]]:
        """Return the live maskings."""
        self._expire()
        return [{"mask": m.mask, "m1": m.m1, "m2": m.m2, "ends_at": m.ends_at} for m in self._live.values()]

    def set(self, fields: Mapping[str, Any]) -> str:
        """Make a masking and return its virtual number. Raises: Rejected 1000, 1005, 1501, 1502, 1503, 1505."""
        self._expire()
        m1, m2 = self._number(fields.get("m1")), self._number(fields.get("m2"))
        if m1 is None or m2 is None:
            raise Rejected(1000)
        if m1 == m2:
            raise Rejected(1501)
        ends_at = self._end(fields, Unknowns())
        if any({m1, m2} == {masking.m1, masking.m2} for masking in self._live.values()):
            raise Rejected(1503)
        if not self._free:
            raise Rejected(1505)
        mask = self._free.pop()
        self._live[mask] = Masking(mask, m1, m2, self._clock() + _DEFAULT_MINUTES * 60 if ends_at is None else ends_at)
        return mask

    def unset(self, fields: Mapping[str, Any], unknowns: Unknowns) -> None:
        """End what fits, or change when it ends. Raises: Rejected 1000, 1005, 1012, 1501, 1502."""
        self._expire()
        m1, m2, mask = (self._number(fields.get(name)) for name in ("m1", "m2", "mask"))
        if m1 is None and m2 is None and mask is None:
            raise Rejected(1000)
        if m1 is not None and m1 == m2:
            raise Rejected(1501)
        ends_at = self._end(fields, unknowns)
        parties = {number for number in (m1, m2) if number is not None}
        found = [m for m in self._live.values() if mask in (None, m.mask) and parties <= {m.m1, m.m2}]
        if not found:
            raise Rejected(1012)
        if len(found) > 1 and unknowns.several == "refuse":
            raise Rejected(1000)
        if ends_at is None and fields.get("expiry_duration") == 0 and unknowns.duration_zero == "ignore":
            return
        for masking in found:
            masking.ends_at = self._clock() if ends_at is None else ends_at
        self._expire()

    def _end(self, fields: Mapping[str, Any], unknowns: Unknowns) -> float | None:
        """Return when the masking is to end, by the sandbox's clock; None when nothing is said of it."""
        minutes, instant = fields.get("expiry_duration"), fields.get("expiry_time")
        by_duration = None if minutes is None else self._after(_integer(minutes), unknowns)
        by_time = None if instant is None else _instant(instant)
        first, second = (by_time, by_duration) if unknowns.both_expiry_fields == "time" else (by_duration, by_time)
        return first if first is not None else second

    def _after(self, minutes: int, unknowns: Unknowns) -> float | None:
        if minutes == 0:
            if unknowns.duration_zero == "refuse":
                raise Rejected(1502)
            return None
        return self._clock() + minutes * 60 if minutes > 0 else self._clock()

    def _number(self, value: Any) -> str | None:
        """Return a number's one form: digits with country code; None when absent. Raises: Rejected 1005."""
        if value is None or value == "":
            return None
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise Rejected(1005)
        text = re.sub(r"[ ().+\-]", "", str(value))
        if not _DIGITS.fullmatch(text):
            raise Rejected(1005)
        bare = text.lstrip("0")
        if len(bare) == 10 and not str(value).strip().startswith("+"):
            bare = self._country + bare
        return bare

    def _expire(self) -> None:
        now = self._clock()
        for mask in [mask for mask, masking in self._live.items() if masking.ends_at <= now]:
            del self._live[mask]
            self._free.append(mask)


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str) or not re.fullmatch(r"[+-]?\d{1,12}", str(value).strip()):
        raise Rejected(1502)
    return int(value)


def _instant(value: Any) -> float:
    if isinstance(value, str) and not re.fullmatch(r"\s*\d{1,12}\s*", value):
        try:
            return datetime.fromisoformat(value).timestamp()
        except ValueError:
            raise Rejected(1502) from None
    return float(_integer(value))
