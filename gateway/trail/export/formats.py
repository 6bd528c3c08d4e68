"""The ways to write records, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from gateway.trail.export.cells import HEADER, csv_line
from gateway.trail.export.ecs import ecs_line
from gateway.trail.export.ocsf import ocsf_line
from gateway.trail.export.reading import NotExportable


@dataclass(frozen=True, slots=True)
class Format:
    """One way to write records, each as a whole line with its end."""

    header: bytes
    """The line before all others; empty where there is none."""
    line: Callable[[bytes], bytes]
    """Give it a record as it is stored. Raises: NotExportable."""


def written(write: Format, records: Iterable[bytes]) -> tuple[bytes, int]:
    """Return records as their lines, and how many cannot be told in this format."""
    lines, left_out = [], 0
    for record in records:
        try:
            lines.append(write.line(record))
        except NotExportable:
            left_out += 1
    return b"".join(lines), left_out


def jsonl_line(record: bytes) -> bytes:
    """Return it byte for byte, whatever it is, as long as it is one line: what was sealed can be verified again."""
    if b"\n" in record or b"\r" in record:
        raise NotExportable("it has line breaks")
    return record + b"\n"


FORMATS: Final[Mapping[str, Format]] = MappingProxyType(
    {
        "jsonl": Format(b"", jsonl_line),
        "csv": Format(HEADER, csv_line),
        "ocsf": Format(b"", ocsf_line),
        "ecs": Format(b"", ecs_line),
    }
)
