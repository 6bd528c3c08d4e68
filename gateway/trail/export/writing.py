"""Events and their JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Final

from gateway.trail.export.reading import NotExportable
from gateway.trail.search import Row


def move(told: Row, event: Row, places: Mapping[str, str]) -> None:
    """Move fields to their places in an event, which are paths."""
    for field, path in places.items():
        if field in told:
            put(event, path, told.pop(field))


def put(event: Row, path: str, value: object) -> None:
    """Put a value at a path of names with dots between."""
    *above, name = path.split(".")
    for step in above:
        event = event.setdefault(step, {})
    event[name] = value


_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_BEYOND_ASCII: Final = re.compile(r"[^\x00-\x7f]")


def json_line(event: Row) -> bytes:
    """Return an event as a line. Raises: NotExportable."""
    return to_json(event).encode() + b"\n"


def to_json(value: object) -> str:
    """Return JSON in ASCII, so that nothing in it ends a line for any reader, and with no half of a surrogate pair.

    Such a half is told as the six characters by which JSON would escape it: most readers refuse the escape itself.
    """
    try:
        text = _ENCODER.encode(value)
    except (ValueError, RecursionError):
        raise NotExportable("it is nested too deeply") from None
    return text if text.isascii() else _BEYOND_ASCII.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    escape = json.dumps(match[0])[1:-1]
    return f"\\{escape}" if "\ud800" <= match[0] <= "\udfff" else escape
