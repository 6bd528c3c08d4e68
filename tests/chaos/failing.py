"""The gateway's own commands on a disk that fails: `python -m tests.chaos.failing FUNCTION ERROR SWITCH serve …`.

As long as the file SWITCH exists, FUNCTION (`write` or `fdatasync`) of the journal's disk fails with ERROR, such as `ENOSPC`.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

from gateway.cli import main as cli
from gateway.ledger import journal


class FailingDisk:
    """Stands where a module has `os`."""

    def __init__(self, function: str, error: str, switch: Path) -> None:
        self._function = function
        self._number = getattr(errno, error)
        self._switch = switch

    def __getattr__(self, name: str) -> Any:
        if name == self._function and self._switch.exists():
            return self._fail
        return getattr(os, name)

    def _fail(self, file: int, data: bytes = b"") -> int:
        # As a disk does that is full amid a write.
        os.write(file, data[: len(data) // 2])
        raise OSError(self._number, os.strerror(self._number))


if __name__ == "__main__":
    vars(journal)["os"] = FailingDisk(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    sys.exit(cli.main(sys.argv[4:]))
