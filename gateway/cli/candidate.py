"""A file of policies that are to be tried or applied."""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from gateway.config import Policy, filled_up, read_policies
from gateway.opened import UsageError


def read_candidate(path: Path, accounts: Collection[str]) -> tuple[dict[str, Any], dict[str, Policy]]:
    """Return the policies of a file, as tables and read; built-in ones filled up. `accounts`: that there are.

    Raises: UsageError, ConfigError.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: is not TOML: {error}") from None
    policies = document.get("policies")
    if not isinstance(policies, dict) or not policies:
        raise UsageError(f"{path}: has no [policies.NAME] table")
    tables = filled_up(policies)
    return tables, dict(read_policies(tables, accounts))
