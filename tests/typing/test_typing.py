"""The client's types, as services see them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def complaints(name: str) -> set[tuple[int, str]]:
    """Return what `mypy --strict` says of a file: line and code."""
    words = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--show-error-codes", str(HERE / name)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=110)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = re.findall(rf"{name}:(\d+): error: .* \[([a-z-]+)\]", done.stdout)
    assert len(found) == done.stdout.count("error:"), done.stdout
    return {(int(line), code) for line, code in found}


def test_good_use_is_accepted() -> None:
    """Without a word."""
    assert complaints("accepted.py") == set()


def test_bad_use_is_rejected() -> None:
    """Line by line."""
    lines = (HERE / "rejected.py").read_text().splitlines()
    wanted = {(number, match[1]) for number, line in enumerate(lines, 1) if (match := re.search(r"# rejected: ([a-z-]+)", line))}

    assert complaints("rejected.py") == wanted


def test_the_types_come_with_the_package() -> None:
    """Without the marker mypy takes everything for Any."""
    assert (HERE.parents[1] / "gateway" / "py.typed").exists()
