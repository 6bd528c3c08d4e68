"""The settings file: read, and every fault of it told with its line."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway import config
from gateway.config import ConfigError, Fault, Settings


def document(path: Path) -> dict[str, Any]:
    """Return a TOML file's content. Raises: ConfigError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError((Fault(str(path), f"cannot be read: {error.strerror}"),)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError((Fault(str(path), f"is not TOML: {error}"),)) from None


def load(path: Path, environ: Mapping[str, str]) -> Settings:
    """Return the settings of a file, with lines named in its faults. Raises: ConfigError."""
    parsed = document(path)
    try:
        return config.parse(parsed, environ)
    except ConfigError as error:
        lines = lines_of(path)
        raise ConfigError(tuple(_placed(fault, lines) for fault in error.faults)) from None


def lines_of(path: Path) -> dict[str, int]:
    """Return the line of each table and key; enough of TOML's grammar for files written by people."""
    lines: dict[str, int] = {}
    table = ""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return lines
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("["):
            table = stripped.strip("[] ").split("]")[0].replace('"', "").replace(" ", "") + "."
            lines[table[:-1]] = number
        elif "=" in stripped and not stripped.startswith("#"):
            lines[table + stripped.split("=", 1)[0].strip().strip('"')] = number
    return lines


def line_of(path: str, lines: Mapping[str, int]) -> int | None:
    """Return the line of a setting, or of the nearest table above it."""
    while path:
        if path in lines:
            return lines[path]
        path = path.rpartition(".")[0]
    return None


def _placed(fault: Fault, lines: Mapping[str, int]) -> Fault:
    line = line_of(fault.path, lines)
    return fault if line is None else Fault(f"{fault.path} (line {line})", fault.message)
