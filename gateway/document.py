"""What the body of a call says: JSON read strictly, whatever its content type claims.

None of the vendor's own samples sends `application/json`, so the type is not looked at. Where JSON readers disagree
(a name twice, NaN, another encoding) the body is refused, or two readers could see two different calls.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from gateway.errors import Problem, Refusal

# A word, as fields are named; a credential or a number has digits within.
_NAME: Final = re.compile(r"[A-Za-z_]{1,32}[0-9]{0,2}")
_UNQUOTED_NUMBER: Final = re.compile(r":\s*(?:\+\d|0\d)")


@dataclass(frozen=True, slots=True)
class Document:
    """The fields of a body, or why there are none."""

    fields: Mapping[str, Any] = field(repr=False)
    """Empty when `fault` is set."""
    fault: Refusal | None = None


def read_document(body: bytes, bytes_max: int) -> Document:
    """Read a body. Never raises: who is calling is settled before what is wrong with the body is answered."""
    try:
        return Document(_read(body, bytes_max))
    except Refusal as fault:
        return Document({}, fault)


def shown(name: str) -> str:
    """Return a field's name as it may stand in an answer; what may be a number or a secret is not repeated."""
    return name if _NAME.fullmatch(name) else "(not shown)"


def _read(body: bytes, bytes_max: int) -> dict[str, Any]:
    if len(body) > bytes_max:
        raise Refusal(
            Problem.body_too_large, detail=f"The body is longer than {bytes_max} bytes. Send only the fields of one unset call."
        )
    if not body.strip():
        raise _malformed("The body is empty. Send one JSON object.")
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _malformed("The body is not UTF-8. Encode it as UTF-8.") from None
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError):
        # RecursionError: thousands of brackets. ValueError also covers integers of thousands of digits.
        raise _malformed(_reason(text)) from None
    if not isinstance(value, dict):
        raise _malformed("The body is JSON, but not an object. Send { … } with the fields of one call.")
    return value


def _reason(text: str) -> str:
    if _UNQUOTED_NUMBER.search(text):
        return (
            "A number in the body begins with '+' or '0' and has no quotes, which is not JSON. "
            'Put it in quotes: "mask": "09876543210".'
        )
    return "The body is not valid JSON. Send one JSON object with names and texts in double quotes."


def _malformed(detail: str) -> Refusal:
    return Refusal(Problem.body_malformed, detail=detail)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    named = dict(pairs)
    if len(named) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise Refusal(
            Problem.field_duplicate,
            field=shown(twice),
            detail=f"The field '{shown(twice)}' stands twice in the body. Send it once.",
        )
    return named


def _no_constant(name: str) -> NoReturn:
    raise Refusal(
        Problem.body_malformed, detail=f"The body holds {name}, which is not JSON. Send a number or leave the field out."
    )


def _number(text: str) -> int | float:
    """Return a number written with a fraction or an exponent: `-1.0` is the integer -1, as in JSON Schema and in JavaScript."""
    value = float(text)
    return int(value) if abs(value) < _EXACT and value.is_integer() else value


_EXACT: Final = 2**53
"""Below it every reader of JSON makes the same integer of a number."""
_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_number)
