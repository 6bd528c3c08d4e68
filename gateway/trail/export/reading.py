"""What a stored record tells, and what in it is not as the gateway records it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from ipaddress import ip_address
from math import isfinite
from typing import Any, Final, Literal, NoReturn

import msgspec

from gateway.audit import REPLAYED, Record, unix_seconds
from gateway.trail.search import Row


class NotExportable(Exception):
    """What stands in the trail is no JSON object, or no line. The message says why, and nothing of what it holds."""


TYPES: Final = {field.name: field.type for field in msgspec.structs.fields(Record)}
"""Of each field of a record, in their order, the type the gateway writes there."""
LONG: Final = 1 << 63
"""Where the whole numbers of both schemas end."""
_DIGITS_MAX: Final = 20
"""A number with more digits fits nowhere, and is kept as a text."""


def read(record: bytes) -> Row:
    """Return a record's fields; of a name that stands twice, the last, as every reader of the trail does.

    Python's own decoder takes what stricter ones refuse, such as half a surrogate pair.
    """
    try:
        row = _DECODER.decode(record.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        raise NotExportable("it is not JSON, or is nested too deeply") from None
    if not isinstance(row, dict):
        raise NotExportable("it is JSON, but not an object")
    return row


def _whole_or_text(digits: str) -> int | str:
    return int(digits) if len(digits) <= _DIGITS_MAX else digits


def _finite_or_text(digits: str) -> float | str:
    number = float(digits)
    return number if isfinite(number) else digits


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


_DECODER: Final = json.JSONDecoder(parse_int=_whole_or_text, parse_float=_finite_or_text, parse_constant=_refuse_constant)


def usual_and_odd(row: Row) -> tuple[Row, Row]:
    """Return what is as the gateway records it, and apart from it what is not. A null is told by leaving it out."""
    usual: Row = {}
    odd: Row = {}
    for name, value in row.items():
        if value is not None:
            (usual if name in TYPES and _is_usual(name, value) else odd)[name] = value
    return usual, odd


def usual(row: Row) -> Row:
    """Return what is as the gateway records it, and who wrote it of which account: whoever could write to Redis may have.

    A time that is none is left out.
    """
    try:
        msgspec.convert(row, Record)
        if milliseconds(row["at"]) is not None and None not in row.values():
            return row
    except (msgspec.ValidationError, UnicodeEncodeError):
        pass
    told, _ = usual_and_odd(row)
    return {**told, **{name: row[name] for name in ("stage", "writer", "seq", "account")}}


def _is_usual(name: str, value: Any) -> bool:
    if isinstance(value, int) and not -LONG <= value < LONG:
        return False
    try:
        msgspec.convert(value, TYPES[name])
    except (msgspec.ValidationError, UnicodeEncodeError):
        return False
    return name not in {"at", "until"} or milliseconds(value) is not None


_INSTANT: Final = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z", re.ASCII)


def milliseconds(at: str) -> int | None:
    """Return milliseconds since 1970; None for what is not written as records are."""
    if not _INSTANT.fullmatch(at):
        return None
    try:
        return round(unix_seconds(at) * 1000)
    except ValueError:
        return None


_ADDRESS_MAX: Final = 40
"""Characters that OCSF allows: enough for all but an IPv4 address in IPv6 with every zero written."""


def is_address(source: str) -> bool:
    """Say whether it is an IP address as both schemas take one: with no zone."""
    try:
        ip_address(source)
    except ValueError:
        return False
    return len(source) <= _ADDRESS_MAX and "%" not in source


NO_TIME: Final = "1970-01-01T00:00:00.000Z"
"""Both schemas demand a time; a record with none that can be read is told to be of the first there is."""

Ending = Literal["success", "failure", "unknown"]
_RESULTS: Final[Mapping[str | None, Ending]] = {"answered": "success", "refused": "failure", "failed": "failure"}


def ending(told: Row) -> Ending | None:
    """Say how it ended; None of what only happens, and does not succeed or fail."""
    match told.get("stage"):
        case "outcome" | "abort":
            return _RESULTS.get(told.get("result"), "unknown")
        case "intent":
            return "unknown"
        case "refusal":
            return "success" if told.get("problem") == REPLAYED else "failure"
        case "change" | "search":
            return "success"
        case _:
            return None


def is_change(told: Row) -> bool:
    """Say whether it is of a change, or of one that was not made."""
    return told.get("stage") == "change" or (told.get("stage") == "abort" and "change" in told)


def record_id(told: Row) -> str | None:
    """Return `writer-seq`; None where one of the two is missing."""
    return f"{told['writer']}-{told['seq']}" if "writer" in told and "seq" in told else None
