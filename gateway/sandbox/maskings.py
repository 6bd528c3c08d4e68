"""The vendor's state: a pool of virtual numbers and the maskings that use them, with an end that really comes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import phonenumbers

_DEFAULT_MINUTES: Final = 1440
_COUNTRY: Final = "91"
_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,12}")


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
        self._soonest = math.inf  # No masking ends before it, so that a call need not look at each.
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
        usual = self._clock() + _DEFAULT_MINUTES * 60
        ends_at = self._end(fields, Unknowns(), otherwise=usual)
        if any({m1, m2} == {masking.m1, masking.m2} for masking in self._live.values()):
            raise Rejected(1503)
        if not self._free:
            raise Rejected(1505)
        mask = self._free.pop()
        self._live[mask] = Masking(mask, m1, m2, usual)
        self._reschedule([self._live[mask]], ends_at)
        return mask

    def unset(self, fields: Mapping[str, Any], unknowns: Unknowns) -> None:
        """End what fits, or change when it ends. Raises: Rejected 1000, 1005, 1012, 1501, 1502."""
        self._expire()
        m1, m2, mask = (self._number(fields.get(name)) for name in ("m1", "m2", "mask"))
        if m1 is None and m2 is None and mask is None:
            raise Rejected(1000)
        if m1 is not None and m1 == m2:
            raise Rejected(1501)
        ends_at = self._end(fields, unknowns, otherwise=self._clock())
        found = [
            masking
            for masking in self._live.values()
            if mask in (None, masking.mask)
            and (m1 is None or m1 in (masking.m1, masking.m2))
            and (m2 is None or m2 in (masking.m1, masking.m2))
        ]
        if not found:
            raise Rejected(1012)
        if len(found) > 1 and unknowns.several == "refuse":
            raise Rejected(1000)
        self._reschedule(found, ends_at)

    def _reschedule(self, maskings: list[Masking], ends_at: float | None) -> None:
        if ends_at is None:
            return
        for masking in maskings:
            masking.ends_at = ends_at
        self._soonest = min(self._soonest, ends_at)
        self._expire()

    def _end(self, fields: Mapping[str, Any], unknowns: Unknowns, otherwise: float) -> float | None:
        """Return when a masking is to end, by the sandbox's clock: `otherwise` when unsaid, None to leave it as it is."""
        # Both are read even where one decides: a bad value is refused wherever it stands.
        minutes = None if fields.get("expiry_duration") is None else _integer(fields["expiry_duration"])
        instant = None if fields.get("expiry_time") is None else _instant(fields["expiry_time"])
        if minutes == 0 and unknowns.duration_zero == "refuse":
            raise Rejected(1502)
        if instant is not None and (minutes is None or unknowns.both_expiry_fields == "time"):
            return instant
        if minutes is None:
            return otherwise
        if minutes == 0 and unknowns.duration_zero == "ignore":
            return None
        return self._clock() + max(minutes, 0) * 60

    def _number(self, value: Any) -> str | None:
        """Return a number's one form: digits with country code; None when absent. Raises: Rejected 1005."""
        if value is None or value == "":
            return None
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise Rejected(1005)
        # The vendor's rules are not documented: the public numbering plans are, so it is as strict as those.
        try:
            number = phonenumbers.parse(str(value), phonenumbers.region_code_for_country_code(int(self._country)))
        except phonenumbers.NumberParseException:
            raise Rejected(1005) from None
        if phonenumbers.is_possible_number_with_reason(number) != phonenumbers.ValidationResult.IS_POSSIBLE:
            raise Rejected(1005)
        return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)[1:]

    def _expire(self) -> None:
        now = self._clock()
        if now < self._soonest:
            return
        for mask in [mask for mask, masking in self._live.items() if masking.ends_at <= now]:
            del self._live[mask]
            self._free.append(mask)
        self._soonest = min((masking.ends_at for masking in self._live.values()), default=math.inf)


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str) or not _WHOLE.fullmatch(str(value).strip()):
        raise Rejected(1502)
    return int(value)


def _instant(value: Any) -> float:
    """Read Unix seconds or ISO 8601; a time without a zone is UTC, so that the machine's zone decides nothing."""
    if not isinstance(value, str) or _WHOLE.fullmatch(value.strip()):
        return float(_integer(value))
    try:
        read = datetime.fromisoformat(value.strip())
    except ValueError:
        raise Rejected(1502) from None
    return (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()
