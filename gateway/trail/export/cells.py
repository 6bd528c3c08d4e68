"""A table: a column for each field of `Record`, in its order, and one for whatever else there is."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import Final

from gateway.trail.export.reading import TYPES, read
from gateway.trail.export.writing import to_json

_OTHER: Final = "other"
"""The last column: what `Record` has no field for, as a JSON object. Empty for what the gateway wrote."""
_FORMULA: Final = re.compile(r'(^"?|[,;|])(\s*)([=+\-@\uff1d\uff0b\uff0d\uff20])')
"""What a spreadsheet takes for the beginning of a formula, also one that parts cells at another sign than the comma."""


def csv_line(record: bytes) -> bytes:
    """Return a record as a row. Raises: NotExportable."""
    row = read(record)
    other = {name: value for name, value in row.items() if name not in TYPES}
    return _line([*(_cell(row.get(name)) for name in TYPES), _cell(other or None)])


def _line(cells: list[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _cell(value: object) -> str:
    """Return a cell. One that begins with a quotation mark is a text in JSON, which may hold what could be no cell."""
    if value is None:
        return ""
    if isinstance(value, (bool, int, float)):
        return to_json(value)
    text = value if isinstance(value, str) else to_json(value)
    if text.isprintable() and not text.startswith('"') and not _FORMULA.search(text):
        return text
    return _FORMULA.sub(lambda begin: f"{begin[1]}{begin[2]}\\u{ord(begin[3]):04x}", json.dumps(text))


HEADER: Final = _line([*TYPES, _OTHER])
