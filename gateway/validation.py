"""Is this a call we serve, in the shape we serve: the vendor's documented rules, checked before any quota is spent.

Source: the vendor's Masking API v2, `unset`. Where the vendor has a code for a fault, ours carries it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from gateway.config import Validation
from gateway.document import Document, shown
from gateway.errors import Problem, Refusal
from gateway.model import NUMBER_FIELDS, Call, Caller, Operation, PhoneNumber
from gateway.numbers import read_number

_TAKEN: Final = frozenset((*NUMBER_FIELDS, "expiry_time", "expiry_duration", "ssid", "userId", "token"))
MINUTES_MAX: Final = 10 * 366 * 24 * 60
"""Ten years."""
_SECONDS: Final = range(1, 10**11)


@dataclass(frozen=True, slots=True)
class Validator:
    """Turns a document into a call, by the settings that say how strict to be."""

    settings: Validation

    def validate(self, document: Document, caller: Caller, account: str) -> Call:
        """Return the call the caller asks for.

        Raises: Refusal with the field at fault and the fix, `scope_missing` or `number_not_permitted`.
        """
        if document.fault is not None:
            raise document.fault
        fields = document.fields
        self._refuse_unknown(fields)
        numbers = self._numbers(fields)
        duration = _duration(fields["expiry_duration"]) if "expiry_duration" in fields else None
        time = _time(fields["expiry_time"]) if "expiry_time" in fields else None
        if duration is not None and time is not None and self.settings.both_expiry_fields == "refuse":
            raise Refusal(Problem.expiry_conflict, field="expiry_time")
        operation: Operation = "end" if (duration is None and time is None) or (duration or 0) < 0 else "reschedule"
        if not caller.may(operation):
            raise Refusal(
                Problem.scope_missing,
                operation=operation,
                detail=f"This key has no scope '{operation}'. Ask the gateway's operators for it.",
            )
        _refuse_unbound(numbers, caller.bindings.prefixes)
        return Call(caller, account, operation, numbers, time, duration)

    def _refuse_unknown(self, fields: Mapping[str, Any]) -> None:
        if fields.keys() <= _TAKEN or self.settings.unknown_fields == "drop":
            return
        name = shown(next(name for name in fields if name not in _TAKEN))
        raise Refusal(
            Problem.field_unknown,
            field=name,
            detail=f"The body has a field '{name}' that this call does not take. Leave it out; the fields are "
            "m1, m2, mask, expiry_time and expiry_duration.",
        )

    def _numbers(self, fields: Mapping[str, Any]) -> dict[str, PhoneNumber]:
        numbers = {name: self._number(name, fields[name]) for name in NUMBER_FIELDS if name in fields}
        if not numbers:
            raise Refusal(Problem.number_missing, field="m1")
        if "m1" in numbers and "m2" in numbers and numbers["m1"].e164 == numbers["m2"].e164:
            raise Refusal(Problem.numbers_equal, field="m2")
        return numbers

    def _number(self, name: str, value: Any) -> PhoneNumber:
        if value is None or value == "":
            # Left out, it would widen what the call ends: a caller whose variable is empty does not mean that.
            raise Refusal(
                Problem.number_invalid, field=name, detail=f"'{name}' is empty. Give a telephone number, or leave it out."
            )
        # The vendor's own sample sends `mask` as a JSON number, although it is declared a text.
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str):
            raise Refusal(
                Problem.field_type, field=name, detail=f"'{name}' must be a telephone number as a text, like \"919876543210\"."
            )
        number = read_number(value, self.settings.default_region)
        if number is None:
            raise Refusal(
                Problem.number_invalid,
                field=name,
                detail=f"'{name}' is not a telephone number. Send digits, with a leading '+' and country code "
                f"or in the home format of {self.settings.default_region}.",
            )
        return number


def _refuse_unbound(numbers: Mapping[str, PhoneNumber], prefixes: tuple[str, ...]) -> None:
    for name, number in numbers.items():
        if prefixes and not number.e164.startswith(prefixes):
            raise Refusal(
                Problem.number_not_permitted,
                field=name,
                detail=f"This key is not bound to numbers that begin like '{name}'. Ask the gateway's operators for it.",
            )


def _duration(value: Any) -> int:
    """Read minutes: an integer, or a text of one. An empty value is a fault: without an expiry the call ends a masking."""
    minutes = _integer(value)
    if minutes is None:
        raise Refusal(Problem.expiry_duration_invalid, field="expiry_duration")
    if abs(minutes) > MINUTES_MAX:
        raise Refusal(
            Problem.expiry_duration_invalid,
            field="expiry_duration",
            detail=f"expiry_duration is in minutes, from -{MINUTES_MAX} to {MINUTES_MAX} (ten years).",
        )
    return minutes


def _time(value: Any) -> int:
    """Read an instant: Unix seconds as integer or text, or ISO 8601 with its zone."""
    seconds = _integer(value, digits=13)
    if seconds is None and isinstance(value, str):
        seconds = _iso(value)
    if seconds is None:
        raise Refusal(Problem.expiry_time_invalid, field="expiry_time")
    if seconds not in _SECONDS:
        raise Refusal(
            Problem.expiry_time_invalid,
            field="expiry_time",
            detail="expiry_time is out of range. Send Unix seconds (10 digits), not milliseconds.",
        )
    return seconds


def _iso(value: str) -> int | None:
    try:
        instant = datetime.fromisoformat(value.strip())
    except ValueError:
        return None
    # Without a zone the same text is two instants, five and a half hours apart.
    return int(instant.timestamp()) if instant.tzinfo is not None else None


def _integer(value: Any, digits: int = 9) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, str) and re.fullmatch(rf"[+-]?[0-9]{{1,{digits}}}", value.strip()):
        return int(value)
    return None
