"""The processes that a process started, as the kernel knows them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def descendants(pid: int, words: str = "") -> list[int]:
    """Return the processes that a process started, and those that these started; those with `words` in their command."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            with suppress(FileNotFoundError, ProcessLookupError):  # It was reaped before this was opened, or read.
                if words in Path(f"/proc/{child}/cmdline").read_text().replace("\0", " "):
                    found.append(child)
                found += descendants(child, words)
    return found
